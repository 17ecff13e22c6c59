// SPDX-License-Identifier: Apache-2.0
// What one message may hold, on every side of the wire. The receiver checks; docs/protocol.md states
// the same numbers.

import { MiB } from "../core/units.ts";

export const limits = {
  /** One gRPC message. ModelExpress clients send tensor lists of this size. */
  messageBytesMax: 100 * MiB,
  /** Any name or id, in UTF-16 code units. */
  nameLengthMax: 512,
  /** extra_parameters, an endpoint, a layout signature. */
  textLengthMax: 4_096,
  extraParametersMax: 1_024,
  identitiesMax: 64,
  endpointsMax: 16,
  baseArtifactsMax: 64,
  tensorsMax: 500_000,
  findLimitMax: 256,
  findLimitDefault: 8,
  bootBytesMax: 1 * MiB,
  bootsLimitMax: 1_000,
  bootsLimitDefault: 20,
  /** A ListBoots answer stops before this many bytes of records. */
  bootsAnswerBytesMax: 64 * MiB,
} as const;
