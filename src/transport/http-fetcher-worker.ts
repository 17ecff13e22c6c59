// SPDX-License-Identifier: Apache-2.0
// One thread of the fetcher: exchanges with sources; hashing and writing.
// It decides nothing about which source or when to try again.

import { parentPort, workerData } from "node:worker_threads";
import type { Hex32 } from "../core/digest.ts";
import { chunkBytes, formatRanges, PieceSet } from "../core/pieces.ts";
import { asRelightError, assert } from "../errors.ts";
import { ConnectionPool } from "./connection-pool.ts";
import type {
  FetcherWorkerData,
  FromFetcher,
  PackedOrder,
  ToFetcher,
} from "./http-fetcher-messages.ts";
import { frameBytes } from "./http-frame.ts";
import { GatherSink, PieceSink } from "./http-sinks.ts";
import type { StagedPiece } from "./staged-piece.ts";
import type { Finishing } from "./transport.ts";
import { toPlainError } from "./worker.ts";

/** Verified pieces are told in groups: one message for each would cost more than the piece. */
const groupPiecesMax = 1_000;
const groupMsMax = 50;
/** Of a digest in hex. */
const digestLength = 64;

assert(parentPort !== null, "the piece fetcher runs as a worker thread");
const parent = parentPort;
const { limits, tls } = workerData as FetcherWorkerData;
const pool = new ConnectionPool({ limits, tls, partBytesMax: chunkBytes + frameBytes });

parent.on("message", (message: ToFetcher) => {
  if (message.type === "cancel") pool.cancel(message.id);
  else if (message.type === "renew") pool.renew(message.tls);
  else void perform(message);
});

async function perform(message: Exclude<ToFetcher, { type: "cancel" | "renew" }>): Promise<void> {
  const { id } = message;
  try {
    if (message.type === "gather") await gather(message);
    else await fetchPieces(message);
  } catch (error) {
    tell({ type: "failed", id, error: toPlainError(asRelightError(error)) });
  } finally {
    pool.forget(id);
  }
}

async function gather({ id, at, what, bytesMax }: ToFetcher & { type: "gather" }): Promise<void> {
  const sink = new GatherSink(bytesMax);
  await pool.exchange(
    { id, endpoint: at.endpoint, path: `/v1/artifacts/${at.artifactId}/${what}` },
    sink,
  );
  tell({ type: "gathered", id, bytes: sink.result });
}

async function fetchPieces({ id, at, order }: ToFetcher & { type: "pieces" }): Promise<void> {
  const have = new PieceSet(order.haveSize, order.have);
  const group = new Group(id);
  let bytes = 0;
  const verified = (some: readonly StagedPiece[]) => {
    for (const { piece, length } of some) {
      have.add(piece);
      bytes += length;
    }
    group.add(some);
  };
  const sink = new PieceSink(unpack(order), verified, finishingOf(order));
  const path = `/v1/artifacts/${at.artifactId}/pieces?ranges=${formatRanges(order.pieces)}`;
  try {
    await pool.exchange({ id, endpoint: at.endpoint, path }, sink);
  } finally {
    group.flush();
  }
  tell({ type: "fetched", id, bytes, refused: sink.refused });
}

function unpack({ pieces, paths, digests, numbers, root }: PackedOrder): StagedPiece[] {
  const names = paths.split("\0");
  const isWhole = names.length === pieces.length && digests.length === pieces.length * digestLength;
  assert(isWhole, "an order has a path and a digest for each piece");
  return pieces.map((piece, at) => {
    return {
      piece,
      path: `${root}/${names[at]}`,
      fileBytes: numbers[at * 5] ?? 0,
      mode: numbers[at * 5 + 1] ?? 0,
      offset: numbers[at * 5 + 2] ?? 0,
      length: numbers[at * 5 + 3] ?? 0,
      fileIndex: numbers[at * 5 + 4] ?? 0,
      digest: digests.slice(at * digestLength, (at + 1) * digestLength) as Hex32,
    };
  });
}

function finishingOf({ finishing }: PackedOrder): Finishing | null {
  if (finishing === null) return null;
  const { accessMs, modifiedMs, finished, finishedSize } = finishing;
  return { accessMs, modifiedMs, finished: new PieceSet(finishedSize, finished) };
}

class Group {
  readonly #id: number;
  #pieces: number[] = [];
  #sinceMs = performance.now();

  constructor(id: number) {
    this.#id = id;
  }

  add(some: readonly StagedPiece[]): void {
    for (const { piece } of some) this.#pieces.push(piece);
    const isDue = performance.now() - this.#sinceMs >= groupMsMax;
    if (isDue || this.#pieces.length >= groupPiecesMax) this.flush();
  }

  flush(): void {
    if (this.#pieces.length > 0) tell({ type: "verified", id: this.#id, pieces: this.#pieces });
    this.#pieces = [];
    this.#sinceMs = performance.now();
  }
}

function tell(message: FromFetcher): void {
  parent.postMessage(message);
}
