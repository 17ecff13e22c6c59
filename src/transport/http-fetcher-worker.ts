// SPDX-License-Identifier: Apache-2.0
// One thread of the fetcher: connections to sources, kept open between orders; hashing and writing.
// It decides nothing about which source or when to try again.

import { createSecureContext } from "node:tls";
import { parentPort, workerData } from "node:worker_threads";
import { isHex32 } from "../core/digest.ts";
import { chunkBytes, formatRanges, PieceSet } from "../core/pieces.ts";
import { MiB } from "../core/units.ts";
import { asRelightError, assert, RelightError } from "../errors.ts";
import { secureContextOptions } from "../trust/tls.ts";
import { type TlsMaterial, tlsIdentity } from "../trust/tls-material.ts";
import { BufferPool } from "./buffer-pool.ts";
import { type BodySink, type ClientIdentity, Connection } from "./http-connection.ts";
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
const checkMs = 100;
/** Of a digest in hex. */
const digestLength = 64;
/** Unused connections beyond this are closed. */
const idleMax = 16;

assert(parentPort !== null, "the piece fetcher runs as a worker thread");
const parent = parentPort;
const { limits, tls } = workerData as FetcherWorkerData;
// A whole frame must fit, and a read's worth of the next one beside it.
const pool = new BufferPool({ bufferBytes: chunkBytes + frameBytes + MiB, keptMax: idleMax });
const active = new Map<number, Connection>();
const cancelled = new Set<number>();
let own = tls === null ? null : clientIdentity(tls);
let idle: Connection[] = [];
let lastCheckMs = performance.now();

parent.on("message", (message: ToFetcher) => {
  if (message.type === "cancel") cancel(message.id);
  else if (message.type === "renew") renew(message.tls);
  else void perform(message);
});
setInterval(checkDeadlines, checkMs);

async function perform(message: Exclude<ToFetcher, { type: "cancel" | "renew" }>): Promise<void> {
  const { id } = message;
  try {
    if (message.type === "gather") await gather(message);
    else await fetchPieces(message);
  } catch (error) {
    tell({ type: "failed", id, error: toPlainError(asRelightError(error)) });
  } finally {
    active.delete(id);
    cancelled.delete(id);
  }
}

async function gather({ id, at, what, bytesMax }: ToFetcher & { type: "gather" }): Promise<void> {
  const sink = new GatherSink(bytesMax);
  await exchange(
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
    await exchange({ id, endpoint: at.endpoint, path }, sink);
  } finally {
    group.flush();
  }
  tell({ type: "fetched", id, bytes, refused: sink.refused });
}

/** One exchange, on an idle connection when there is one; on a new one when that had died unnoticed. */
async function exchange(
  what: { id: number; endpoint: string; path: string },
  sink: BodySink,
): Promise<void> {
  const waiting = takeIdle(what.endpoint);
  if (waiting === null) return await runOn(open(what.endpoint), what, sink);
  try {
    await runOn(waiting, what, sink);
  } catch (error) {
    if (!waiting.wasStale) throw error;
    await runOn(open(what.endpoint), what, sink);
  }
}

function takeIdle(endpoint: string): Connection | null {
  idle = idle.filter((connection) => connection.isUsable);
  const at = idle.findIndex((connection) => connection.endpoint === endpoint);
  return at === -1 ? null : (idle.splice(at, 1)[0] ?? null);
}

async function runOn(
  connection: Connection,
  { id, path }: { id: number; path: string },
  sink: BodySink,
): Promise<void> {
  active.set(id, connection);
  if (cancelled.has(id)) connection.fail(cancellation());
  try {
    await connection.run(path, sink);
  } finally {
    active.delete(id);
  }
  if (connection.isUsable) keep(connection);
}

function open(endpoint: string): Connection {
  const buffer = pool.take();
  return new Connection(endpoint, {
    buffer,
    limits,
    tls: own,
    onClosed: (buffer) => pool.give(buffer),
  });
}

function clientIdentity(material: TlsMaterial): ClientIdentity {
  const identity = tlsIdentity(material);
  return { identity, context: createSecureContext(secureContextOptions(identity)) };
}

/** What we show counts for connections from now on, whom we believe for those under way as well. */
function renew(material: TlsMaterial): void {
  own = clientIdentity(material);
  for (const connection of idle.splice(0)) connection.fail(cancellation());
  for (const connection of active.values()) connection.judgeAgain(own);
}

function keep(connection: Connection): void {
  idle.unshift(connection);
  for (const surplus of idle.splice(idleMax)) surplus.fail(cancellation());
}

function cancel(id: number): void {
  cancelled.add(id);
  active.get(id)?.fail(cancellation());
}

function cancellation(): RelightError {
  return new RelightError("cancelled", "Cannot finish the transfer: it was cancelled");
}

function checkDeadlines(): void {
  const nowMs = performance.now();
  const heldUpMs = nowMs - lastCheckMs - checkMs;
  lastCheckMs = nowMs;
  for (const connection of active.values()) {
    if (heldUpMs > checkMs) connection.forgive(heldUpMs);
    connection.checkDeadlines(nowMs);
  }
}

function unpack({ pieces, paths, digests, numbers, root }: PackedOrder): StagedPiece[] {
  const names = paths.split("\0");
  return pieces.map((piece, at) => {
    const digest = digests.slice(at * digestLength, (at + 1) * digestLength);
    assert(isHex32(digest), "an order has a digest for each piece");
    return {
      piece,
      path: `${root}/${names[at]}`,
      fileBytes: numbers[at * 5] ?? 0,
      mode: numbers[at * 5 + 1] ?? 0,
      offset: numbers[at * 5 + 2] ?? 0,
      length: numbers[at * 5 + 3] ?? 0,
      fileIndex: numbers[at * 5 + 4] ?? 0,
      digest,
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
