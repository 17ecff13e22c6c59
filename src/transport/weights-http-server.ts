// SPDX-License-Identifier: Apache-2.0
// Weights over HTTP/1.1, as their owner serves them: threads take requests and write answers, this one
// asks whoever holds the GPU. No byte passes through this thread; ranges lie in memory that all share.

import net from "node:net";
import type { Worker } from "node:worker_threads";
import { isLoopback } from "../core/loopback.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import { ServerCounters, type ServerWorkerData } from "./http-server-messages.ts";
import { type ServerLimits, type ServerStats, serverLimits } from "./transport.ts";
import {
  type FromServerThread,
  headBytesMax,
  type SourceRange,
  type ToServerThread,
} from "./weights-http-messages.ts";
import { fromPlainError, startWorker, toPlainError } from "./worker.ts";

/** Who answers: weights/readers.ts. What it throws is told to whoever asked. */
export interface RangeSource {
  call(op: string, args: unknown, signal: AbortSignal): Promise<{ readonly value: unknown } | null>;
  /** The ranges one behind the other, until they are released. */
  fill(
    token: string,
    ranges: readonly SourceRange[],
    signal: AbortSignal,
  ): Promise<{ readonly memory: Uint8Array<SharedArrayBuffer>; readonly release: () => void }>;
}

export interface WeightServerOptions {
  /** An address of this machine, not a name. */
  readonly host: string;
  /** 0 lets the system choose. */
  readonly port: number;
  readonly threads: number;
  readonly source: RangeSource;
  readonly limits?: Partial<ServerLimits>;
  /** What is shown to targets, who must show theirs. Without it plaintext is spoken, on loopback only. */
  readonly tls?: TlsMaterial | null;
}

/** @throws RelightError `port_in_use` and the like; `config_invalid` for plaintext beyond loopback. */
export async function startWeightServer(options: WeightServerOptions): Promise<WeightHttpServer> {
  const { host, threads, source, tls = null } = options;
  if (tls === null && !isLoopback(host)) {
    throw new RelightError(
      "config_invalid",
      `Cannot serve weights on "${host}" in plaintext: want loopback, or a certificate`,
    );
  }
  const counters = ServerCounters.allocate();
  const limits = { ...serverLimits, headBytesMax, ...options.limits };
  const started: ServerThread[] = [];
  let { port } = options;
  try {
    for (let thread = 0; thread < threads; thread += 1) {
      const one = new ServerThread({ host, port, limits, counters, tls }, source);
      started.push(one);
      port = await one.listening;
    }
  } catch (error) {
    await Promise.all(started.map((thread) => thread.stop()));
    throw error;
  }
  const shownHost = net.isIPv6(host) ? `[${host}]` : host;
  const endpoint = `${tls === null ? "http" : "https"}://${shownHost}:${port}`;
  return new WeightHttpServer(endpoint, started, new ServerCounters(counters));
}

export class WeightHttpServer implements AsyncDisposable {
  readonly endpoint: string;
  readonly #threads: readonly ServerThread[];
  readonly #counters: ServerCounters;

  constructor(endpoint: string, threads: readonly ServerThread[], counters: ServerCounters) {
    this.endpoint = endpoint;
    this.#threads = threads;
    this.#counters = counters;
  }

  /** For connections from now on: a certificate was replaced before its end. */
  renew(tls: TlsMaterial): void {
    for (const thread of this.#threads) thread.renew(tls);
  }

  stats(): ServerStats {
    return this.#counters.read();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.stop()));
  }
}

interface Asked {
  readonly gone: AbortController;
  release: (() => void) | null;
}

class ServerThread {
  /** The port it listens on. */
  readonly listening: Promise<number>;
  readonly #worker: Worker;
  readonly #source: RangeSource;
  readonly #asked = new Map<number, Asked>();

  constructor(data: ServerWorkerData, source: RangeSource) {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    this.listening = promise;
    promise.catch(() => undefined); // Whoever waits hears it; afterwards nobody does.
    this.#source = source;
    this.#worker = startWorker("weights-http-server-worker", data);
    this.#worker.on("message", (message: FromServerThread) => {
      if (message.type === "listening") resolve(message.port);
      else if (message.type === "failed") reject(fromPlainError(message.error));
      else this.#receive(message);
    });
    this.#worker.on("error", (cause) => {
      reject(new RelightError("internal", "Cannot serve weights: a thread failed", { cause }));
      this.#endAll();
    });
    this.#worker.on("exit", () => this.#endAll());
  }

  renew(tls: TlsMaterial): void {
    this.#tell({ type: "renew", tls });
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
    this.#endAll();
  }

  #receive(message: Extract<FromServerThread, { id: number }>): void {
    if (message.type === "over") {
      this.#over(message.id);
      return;
    }
    const asked: Asked = { gone: new AbortController(), release: null };
    this.#asked.set(message.id, asked);
    const answered =
      message.type === "call" ? this.#call(message, asked) : this.#read(message, asked);
    answered.catch((cause: unknown) => {
      const error = toPlainError(asRelightError(cause));
      this.#tell({ type: "refuse", id: message.id, error });
    });
  }

  async #call(
    { id, op, args }: Extract<FromServerThread, { type: "call" }>,
    { gone }: Asked,
  ): Promise<void> {
    const reply = await this.#source.call(op, parse(args), gone.signal);
    if (reply === null) {
      throw new RelightError("request_invalid", `Cannot do "${op}": it is no call of a reader`);
    }
    this.#tell({ type: "answer", id, body: JSON.stringify(reply.value) });
  }

  async #read(
    { id, token, ranges }: Extract<FromServerThread, { type: "read" }>,
    asked: Asked,
  ): Promise<void> {
    const { memory, release } = await this.#source.fill(token, ranges, asked.gone.signal);
    if (asked.gone.signal.aborted) {
      release();
      return;
    }
    asked.release = release;
    this.#tell({ type: "filled", id, memory });
  }

  #over(id: number): void {
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    asked?.gone.abort();
    asked?.release?.();
  }

  #endAll(): void {
    for (const id of [...this.#asked.keys()]) this.#over(id);
  }

  #tell(message: ToServerThread): void {
    this.#worker.postMessage(message);
  }
}

function parse(args: string): unknown {
  try {
    return JSON.parse(args);
  } catch (cause) {
    throw new RelightError("request_invalid", "Cannot read the call: it is not JSON", { cause });
  }
}
