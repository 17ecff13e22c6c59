// SPDX-License-Identifier: Apache-2.0
// What another process says went wrong, as an error of this one. A code that is not known here is a
// breach of the protocol, and its words are kept.

import { z } from "zod";
import { type Code, codes, RelightError } from "../errors.ts";

export const remoteErrorSchema = z.strictObject({
  code: z.string().max(64),
  message: z.string().max(65_536),
  details: z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()])),
});

export function remoteError(told: z.infer<typeof remoteErrorSchema>): RelightError {
  const isKnown = Object.hasOwn(codes, told.code);
  const code = isKnown ? (told.code as Code) : "source_protocol";
  return new RelightError(code, told.message, { details: told.details });
}
