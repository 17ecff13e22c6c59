// SPDX-License-Identifier: Apache-2.0
// The piece fetcher over HTTP/1.1, as its owner sees it: hands orders to the least busy thread and
// their outcome back. No byte of a piece passes through this thread.

import type { Worker } from "node:worker_threads";
import { PieceSet } from "../core/pieces.ts";
import { assert, RelightError } from "../errors.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import type {
  FetcherWorkerData,
  FromFetcher,
  PackedFinishing,
  PackedOrder,
  ToFetcher,
} from "./http-fetcher-messages.ts";
import {
  type FetchLimits,
  type Finishing,
  fetchLimits,
  type PieceFetcher,
  type PieceOrder,
  type PieceReceipt,
  type SourceAddress,
} from "./transport.ts";
import { fromPlainError, startWorker } from "./worker.ts";

export interface HttpFetcherOptions {
  readonly threads?: number;
  readonly limits?: Partial<FetchLimits>;
  /** What is shown to sources; without it only sources on loopback can be read from. */
  readonly tls?: TlsMaterial | null;
}

export interface HttpPieceFetcher extends PieceFetcher {
  /** For connections from now on: a certificate was replaced before its end. */
  renew(tls: TlsMaterial): void;
}

export function startHttpFetcher(options: HttpFetcherOptions = {}): HttpPieceFetcher {
  const { threads = 2, tls = null } = options;
  return new HttpFetcher(threads, { limits: { ...fetchLimits, ...options.limits }, tls });
}

type Answer = Exclude<FromFetcher, { type: "verified" | "failed" }>;
/** A request before its thread has numbered it. */
type Unnumbered<Message> = Message extends ToFetcher ? Omit<Message, "id"> : never;
type Request = Unnumbered<Exclude<ToFetcher, { type: "cancel" | "renew" }>>;

class HttpFetcher implements HttpPieceFetcher {
  readonly #threads: readonly FetcherThread[];

  constructor(threads: number, data: FetcherWorkerData) {
    this.#threads = Array.from({ length: threads }, () => new FetcherThread(data));
  }

  renew(tls: TlsMaterial): void {
    for (const thread of this.#threads) thread.renew(tls);
  }

  async manifest(
    at: SourceAddress,
    limits: { readonly bytesMax: number },
    signal: AbortSignal,
  ): Promise<Buffer> {
    return await this.#gather({ at, what: "manifest", bytesMax: limits.bytesMax }, signal);
  }

  async statement(
    at: SourceAddress,
    limits: { readonly bytesMax: number },
    signal: AbortSignal,
  ): Promise<Buffer> {
    return await this.#gather({ at, what: "statement", bytesMax: limits.bytesMax }, signal);
  }

  async have(at: SourceAddress, pieceCount: number, signal: AbortSignal): Promise<PieceSet> {
    const bytesMax = Math.ceil(pieceCount / 8);
    const bytes = await this.#gather({ at, what: "have", bytesMax }, signal);
    return PieceSet.fromBytes(pieceCount, bytes);
  }

  async pieces(
    { endpoint, artifactId, pieces, into }: PieceOrder,
    onVerified: (pieces: readonly number[]) => void,
    signal: AbortSignal,
  ): Promise<PieceReceipt> {
    const order = packOrder(pieces, into);
    const at = { endpoint, artifactId };
    const answer = await this.#pick().request(
      { type: "pieces", at, order },
      { onVerified, signal },
    );
    assert(answer.type === "fetched", "an order of pieces is answered with a receipt");
    return { bytes: answer.bytes, refused: answer.refused };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.stop()));
  }

  async #gather(
    what: { at: SourceAddress; what: "manifest" | "statement" | "have"; bytesMax: number },
    signal: AbortSignal,
  ): Promise<Buffer> {
    const onVerified = () => {};
    const answer = await this.#pick().request({ type: "gather", ...what }, { onVerified, signal });
    assert(answer.type === "gathered", "a request for a small body is answered with it");
    return Buffer.from(answer.bytes.buffer, answer.bytes.byteOffset, answer.bytes.byteLength);
  }

  #pick(): FetcherThread {
    const [first, ...others] = this.#threads;
    assert(first !== undefined, "a fetcher has threads");
    return others.reduce((least, thread) => (thread.load < least.load ? thread : least), first);
  }
}

interface Pending {
  readonly done: PromiseWithResolvers<Answer>;
  readonly onVerified: (pieces: readonly number[]) => void;
}

class FetcherThread {
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  #sequence = 0;
  #failure: RelightError | null = null;

  constructor(data: FetcherWorkerData) {
    this.#worker = startWorker("http-fetcher-worker", data);
    this.#worker.on("message", (message: FromFetcher) => this.#receive(message));
    this.#worker.on("error", (cause) => {
      this.#fail(new RelightError("internal", "Cannot go on fetching: a thread failed", { cause }));
    });
    this.#worker.on("exit", () => {
      this.#fail(new RelightError("cancelled", "Cannot fetch: the fetcher was stopped"));
    });
  }

  /** Requests under way. */
  get load(): number {
    return this.#pending.size;
  }

  async request(
    request: Request,
    { onVerified, signal }: { onVerified: Pending["onVerified"]; signal: AbortSignal },
  ): Promise<Answer> {
    signal.throwIfAborted();
    if (this.#failure !== null) throw this.#failure;
    const id = this.#sequence++;
    const done = Promise.withResolvers<Answer>();
    this.#pending.set(id, { done, onVerified });
    // The thread answers a cancellation once it has stopped writing; only then may others take over.
    const cancel = () => this.#post({ type: "cancel", id });
    signal.addEventListener("abort", cancel, { once: true });
    try {
      this.#post({ ...request, id });
      return await done.promise;
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    } finally {
      signal.removeEventListener("abort", cancel);
    }
  }

  renew(tls: TlsMaterial): void {
    this.#post({ type: "renew", tls });
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }

  #post(message: ToFetcher): void {
    this.#worker.postMessage(message);
  }

  #receive(message: FromFetcher): void {
    const pending = this.#pending.get(message.id);
    if (pending === undefined) return;
    if (message.type === "verified") {
      pending.onVerified(message.pieces);
      return;
    }
    this.#pending.delete(message.id);
    if (message.type === "failed") pending.done.reject(fromPlainError(message.error));
    else pending.done.resolve(message);
  }

  #fail(error: RelightError): void {
    this.#failure ??= error;
    for (const { done } of this.#pending.values()) done.reject(this.#failure);
    this.#pending.clear();
  }
}

function packOrder(pieces: readonly number[], into: PieceOrder["into"]): PackedOrder {
  const numbers = new Float64Array(pieces.length * 5);
  const paths: string[] = [];
  const digests: string[] = [];
  pieces.forEach((number, at) => {
    const piece = into.pieces[number];
    const file = piece === undefined ? undefined : into.files[piece.fileIndex];
    assert(piece !== undefined && file !== undefined, "an order names pieces of its staging");
    numbers[at * 5] = file.size;
    numbers[at * 5 + 1] = file.mode;
    numbers[at * 5 + 2] = piece.offset;
    numbers[at * 5 + 3] = piece.length;
    numbers[at * 5 + 4] = piece.fileIndex;
    paths.push(file.path);
    digests.push(piece.digest);
  });
  const { root, have } = into;
  return {
    pieces,
    paths: paths.join("\0"),
    digests: digests.join(""),
    numbers,
    root,
    have: have.words.buffer,
    haveSize: have.size,
    finishing: packFinishing(into.finishing),
  };
}

function packFinishing(finishing: Finishing | undefined): PackedFinishing | null {
  if (finishing === undefined) return null;
  const { accessMs, modifiedMs, finished } = finishing;
  return {
    accessMs,
    modifiedMs,
    finished: finished.words.buffer,
    finishedSize: finished.size,
  };
}
