// SPDX-License-Identifier: Apache-2.0
// Between the store's heads and the messages of model_express.p2p: one direction each.

import { create } from "@bufbuild/protobuf";
import {
  type SourceIdentity,
  type SourceInstanceRef,
  SourceInstanceRefSchema,
  SourceStatus as WireStatus,
  type WorkerMetadata,
} from "../protocol/gen/p2p_pb.ts";
import { sourceIdOf } from "../protocol/source-id.ts";
import type { Offer, SourceStatus } from "../store/store.ts";
import type { Publication } from "./records.ts";
import type { Listed } from "./standing.ts";

export function headOf(published: {
  identity: SourceIdentity;
  worker: WorkerMetadata;
  workerId: string;
  status: SourceStatus;
  sessionId: string | null;
  offer: Offer | null;
  publisher: string | null;
}): Publication {
  const { identity, worker, workerId, status, sessionId, offer, publisher } = published;
  const extra = identity.extraParameters;
  return {
    sourceId: sourceIdOf(identity),
    workerId,
    status,
    sessionId,
    offer,
    publisher,
    modelName: identity.modelName,
    workerRank: worker.workerRank,
    accelerator: worker.accelerator,
    trainingStep: trainingStepOf(extra["training_step"]),
    layoutSignature: extra["layout_signature"] ?? null,
  };
}

/** A decimal number of 64 bits; anything else is absent, and absent is not zero. */
function trainingStepOf(text: string | undefined): bigint | null {
  if (text === undefined || !/^\+?\d{1,20}$/.test(text)) return null;
  const step = BigInt(text.replace("+", ""));
  return step <= 0xffff_ffff_ffff_ffffn ? step : null;
}

export function refOf({ head, heardMs }: Listed): SourceInstanceRef {
  return create(SourceInstanceRefSchema, {
    mxSourceId: head.sourceId,
    workerId: head.workerId,
    modelName: head.modelName,
    workerRank: head.workerRank,
    accelerator: head.accelerator,
    updatedAt: BigInt(heardMs),
    ...(head.trainingStep === null ? {} : { trainingStep: head.trainingStep }),
    ...(head.layoutSignature === null ? {} : { layoutSignature: head.layoutSignature }),
  });
}

/** Undefined for UNKNOWN and for numbers that are no status. */
export function statusOf(wire: WireStatus): SourceStatus | undefined {
  switch (wire) {
    case WireStatus.INITIALIZING:
      return "initializing";
    case WireStatus.READY:
      return "ready";
    case WireStatus.STALE:
      return "stale";
    default:
      return undefined;
  }
}

export function wireStatusOf(status: SourceStatus): WireStatus {
  return {
    initializing: WireStatus.INITIALIZING,
    ready: WireStatus.READY,
    stale: WireStatus.STALE,
  }[status];
}
