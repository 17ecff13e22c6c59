// SPDX-License-Identifier: Apache-2.0
// A record with every field filled: a test names only what it is about.

import type { Boot, Offer, SourceHead } from "../../src/store/store.ts";

export function sourceHead(fields: Partial<SourceHead> = {}): SourceHead {
  return {
    sourceId: "0123456789abcdef",
    workerId: "worker-1",
    status: "ready",
    staleBy: null,
    updatedAtMs: 1_000,
    publishedAtMs: 1_000,
    sessionId: null,
    modelName: "org/model",
    workerRank: 0,
    accelerator: "cuda",
    trainingStep: null,
    layoutSignature: null,
    publisher: null,
    offer: offer(),
    ...fields,
  };
}

export function offer(fields: Partial<Offer> = {}): Offer {
  return {
    artifactId: "ab".repeat(32),
    family: "triton",
    totalBytes: 5_000_000_000,
    fileCount: 3,
    pieceCount: 4,
    baseArtifactIds: ["cd".repeat(32)],
    endpoints: ["http://127.0.0.1:7001"],
    complete: true,
    ...fields,
  };
}

export function boot(fields: Partial<Boot> = {}): Boot {
  return {
    bootId: "boot-1",
    nodeId: "node-1",
    model: "org/model",
    startedAtMs: 1_000,
    readyMs: 2_500,
    record: Buffer.from('{"phases":[]}'),
    ...fields,
  };
}
