// SPDX-License-Identifier: Apache-2.0
// Weights over HTTP/1.1, as a target reads them: threads hold the connections, several ranges are under
// way at a time, and bytes land in memory that the GPU reads. A link is one source as seen from here.

import type { Worker } from "node:worker_threads";
import { assert, RelightError } from "../errors.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import { type FetchLimits, fetchLimits } from "./transport.ts";
import type {
  ClientData,
  FromClientThread,
  SourceRange,
  ToClientThread,
} from "./weights-http-messages.ts";
import { fromPlainError, startWorker } from "./worker.ts";

export interface WeightClientOptions {
  readonly threads: number;
  readonly limits?: Partial<FetchLimits>;
  /** What is shown to sources; without it only sources on loopback can be read from. */
  readonly tls?: TlsMaterial | null;
}

/** One is received, one is on its way, one is being prepared: two left the wire idle between (3.1 and 4.9 GB/s). */
const requestsPerThread = 3;

/** A source may have to open the GPU, or to wait for its turn; each request has a deadline of its own. */
const firstByteMsMax = 60_000;

type Request = Extract<ToClientThread, { id: number; endpoint: string }>;
type Unnumbered<Message> = Message extends Request ? Omit<Message, "id"> : never;

export class WeightHttpClient implements AsyncDisposable {
  readonly #data: ClientData;
  readonly #count: number;
  #threads: readonly ClientThread[] | null = null;

  constructor({ threads, limits, tls = null }: WeightClientOptions) {
    this.#count = threads;
    this.#data = { limits: { ...fetchLimits, firstByteMsMax, ...limits }, tls };
  }

  /** One source; nothing is opened before it is asked something. */
  link(endpoint: string): WeightHttpLink {
    return new WeightHttpLink(endpoint, requestsPerThread * this.#count, (request, signal) =>
      this.#pick().request(request, signal),
    );
  }

  /** For connections from now on. */
  renew(tls: TlsMaterial): void {
    for (const thread of this.#threads ?? []) thread.renew(tls);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all((this.#threads ?? []).map((thread) => thread.stop()));
  }

  /** The least busy thread; they are started at the first request. */
  #pick(): ClientThread {
    this.#threads ??= Array.from({ length: this.#count }, () => new ClientThread(this.#data));
    const [first, ...others] = this.#threads;
    assert(first !== undefined, "a client has threads");
    return others.reduce((least, thread) => (thread.load < least.load ? thread : least), first);
  }
}

type Ask = (request: Unnumbered<Request>, signal: AbortSignal) => Promise<string>;

export class WeightHttpLink implements Disposable {
  readonly requestsMax: number;
  readonly #endpoint: string;
  readonly #ask: Ask;
  readonly #over = new AbortController();

  constructor(endpoint: string, requestsMax: number, ask: Ask) {
    this.#endpoint = endpoint;
    this.requestsMax = requestsMax;
    this.#ask = ask;
  }

  /** @throws what the source threw; source_unreachable, source_stalled, source_protocol, cancelled */
  async call(
    { op, args }: { readonly op: string; readonly args: unknown },
    signal: AbortSignal,
  ): Promise<{ readonly value: unknown; readonly handles: readonly [] }> {
    const request = {
      type: "call",
      endpoint: this.#endpoint,
      op,
      args: JSON.stringify(args),
    } as const;
    const text = await this.#ask(request, AbortSignal.any([signal, this.#over.signal]));
    try {
      return { value: JSON.parse(text), handles: [] };
    } catch (cause) {
      throw new RelightError("source_protocol", "Cannot read the answer: it is not JSON", {
        cause,
      });
    }
  }

  /** The same, for ranges of its memory. */
  async read(
    what: {
      readonly token: string;
      readonly ranges: readonly SourceRange[];
      readonly into: Uint8Array<SharedArrayBuffer>;
    },
    signal: AbortSignal,
  ): Promise<void> {
    const request = { type: "read", endpoint: this.#endpoint, ...what } as const;
    await this.#ask(request, AbortSignal.any([signal, this.#over.signal]));
  }

  [Symbol.dispose](): void {
    this.#over.abort(new RelightError("cancelled", "Cannot use the source: the link is closed"));
  }
}

class ClientThread {
  readonly #worker: Worker;
  readonly #pending = new Map<number, PromiseWithResolvers<string>>();
  #next = 1;
  #failure: RelightError | null = null;

  constructor(data: ClientData) {
    this.#worker = startWorker("weights-http-client-worker", data);
    this.#worker.unref();
    this.#worker.on("message", (message: FromClientThread) => this.#receive(message));
    this.#worker.on("error", (cause) => {
      this.#fail(new RelightError("internal", "Cannot read weights: a thread failed", { cause }));
    });
    this.#worker.on("exit", () => {
      this.#fail(new RelightError("cancelled", "Cannot read weights: the client was stopped"));
    });
  }

  /** Requests under way. */
  get load(): number {
    return this.#pending.size;
  }

  async request(request: Unnumbered<Request>, signal: AbortSignal): Promise<string> {
    signal.throwIfAborted();
    if (this.#failure !== null) throw this.#failure;
    const id = this.#next++;
    const done = Promise.withResolvers<string>();
    this.#pending.set(id, done);
    // The thread answers a cancellation once it writes no more; only then may others use the memory.
    const cancel = () => this.#tell({ type: "cancel", id });
    signal.addEventListener("abort", cancel, { once: true });
    try {
      this.#worker.ref();
      this.#tell({ ...request, id });
      return await done.promise;
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw error;
    } finally {
      signal.removeEventListener("abort", cancel);
      if (this.#pending.size === 0) this.#worker.unref();
    }
  }

  renew(tls: TlsMaterial): void {
    this.#tell({ type: "renew", tls });
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }

  #receive(message: FromClientThread): void {
    const pending = this.#pending.get(message.id);
    this.#pending.delete(message.id);
    if (message.type === "done") pending?.resolve(message.body);
    else pending?.reject(fromPlainError(message.error));
  }

  #fail(error: RelightError): void {
    this.#failure ??= error;
    for (const { reject } of this.#pending.values()) reject(this.#failure);
    this.#pending.clear();
  }

  #tell(message: ToClientThread): void {
    this.#worker.postMessage(message);
  }
}
