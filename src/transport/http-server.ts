// SPDX-License-Identifier: Apache-2.0
// The piece server over HTTP/1.1, as its owner sees it: starts the threads, tells each what is offered,
// adds up what they did. No byte of a file passes through this thread.

import net from "node:net";
import type { Worker } from "node:worker_threads";
import type { Hex32 } from "../core/digest.ts";
import { isLoopback } from "../core/loopback.ts";
import { RelightError } from "../errors.ts";
import { fromNodeError } from "../platform/node-errors.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import {
  type FromServer,
  ServerCounters,
  type ServerWorkerData,
  type ToServer,
} from "./http-server-messages.ts";
import { packFiles, packOffer } from "./offer-table.ts";
import {
  type Offer,
  type OfferedFile,
  type PieceServer,
  type ServerEvents,
  type ServerLimits,
  type ServerStats,
  serverLimits,
} from "./transport.ts";
import { fromPlainError, startWorker } from "./worker.ts";

export interface HttpServerOptions {
  /** An address of this machine, not a name. */
  readonly host: string;
  /** 0 lets the system choose. */
  readonly port: number;
  readonly threads?: number;
  readonly limits?: Partial<ServerLimits>;
  readonly events: ServerEvents;
  /** What is shown to targets, who must show theirs. Without it plaintext is spoken, on loopback only. */
  readonly tls?: TlsMaterial | null;
}

export interface HttpPieceServer extends PieceServer {
  /** For connections from now on: a certificate was replaced before its end. */
  renew(tls: TlsMaterial): Promise<void>;
}

/** @throws RelightError `port_in_use` and the like; `config_invalid` for plaintext beyond loopback. */
export async function startHttpServer(options: HttpServerOptions): Promise<HttpPieceServer> {
  const { host, events, tls = null } = options;
  if (tls === null) refusePlaintextBeyond(host);
  if (options.port !== 0) await checkFree(host, options.port);
  const counters = ServerCounters.allocate();
  const limits = { ...serverLimits, ...options.limits };
  const threads: ServerThread[] = [];
  let port = options.port;
  try {
    for (let thread = 0; thread < (options.threads ?? 2); thread++) {
      const started = new ServerThread({ host, port, limits, counters, tls }, events);
      threads.push(started);
      port = await started.listening;
    }
  } catch (error) {
    await Promise.all(threads.map((thread) => thread.stop()));
    throw error;
  }
  const shownHost = net.isIPv6(host) ? `[${host}]` : host;
  const scheme = tls === null ? "http" : "https";
  return new HttpServer(`${scheme}://${shownHost}:${port}`, threads, new ServerCounters(counters));
}

function refusePlaintextBeyond(host: string): void {
  if (isLoopback(host)) return;
  throw new RelightError(
    "config_invalid",
    `Cannot listen on "${host}" in plaintext: want loopback, or trust.certificate, trust.key and trust.authority`,
  );
}

class HttpServer implements HttpPieceServer {
  readonly endpoint: string;
  readonly #threads: readonly ServerThread[];
  readonly #counters: ServerCounters;
  readonly #offered = new Set<Hex32>();
  #sequence = 0;

  constructor(endpoint: string, threads: readonly ServerThread[], counters: ServerCounters) {
    this.endpoint = endpoint;
    this.#threads = threads;
    this.#counters = counters;
  }

  async offer(offer: Offer): Promise<void> {
    this.#offered.add(offer.artifactId);
    await this.#tellAll({ type: "offer", sequence: this.#sequence++, offer: packOffer(offer) });
  }

  async relocate(artifactId: Hex32, files: readonly OfferedFile[]): Promise<void> {
    if (!this.#offered.has(artifactId)) {
      throw new RelightError(
        "not_found",
        `Cannot relocate artifact ${artifactId}: it is not offered`,
      );
    }
    const packed = packFiles(files);
    await this.#tellAll({
      type: "relocate",
      sequence: this.#sequence++,
      artifactId,
      files: packed,
    });
  }

  async withdraw(artifactId: Hex32): Promise<void> {
    this.#offered.delete(artifactId);
    await this.#tellAll({ type: "withdraw", sequence: this.#sequence++, artifactId });
  }

  async renew(tls: TlsMaterial): Promise<void> {
    await this.#tellAll({ type: "renew", sequence: this.#sequence++, tls });
  }

  stats(): ServerStats {
    return this.#counters.read();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.stop()));
  }

  async #tellAll(message: ToServer): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.tell(message)));
  }
}

class ServerThread {
  /** The port it listens on. */
  readonly listening: Promise<number>;
  readonly #worker: Worker;
  readonly #waiting = new Map<number, PromiseWithResolvers<void>>();
  readonly #start = Promise.withResolvers<number>();
  #failure: RelightError | null = null;

  constructor(data: ServerWorkerData, events: ServerEvents) {
    this.listening = this.#start.promise;
    this.#worker = startWorker("http-server-worker", data);
    this.#worker.on("message", (message: FromServer) => this.#receive(message, events));
    this.#worker.on("error", (cause) =>
      this.#fail(new RelightError("internal", "Cannot go on serving: a thread failed", { cause })),
    );
    this.#worker.on("exit", () =>
      this.#fail(new RelightError("cancelled", "Cannot serve: the server was stopped")),
    );
  }

  async tell(message: ToServer): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    const done = Promise.withResolvers<void>();
    this.#waiting.set(message.sequence, done);
    this.#worker.postMessage(message);
    await done.promise;
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }

  #receive(message: FromServer, events: ServerEvents): void {
    switch (message.type) {
      case "listening":
        this.#start.resolve(message.port);
        break;
      case "failed":
        this.#fail(fromPlainError(message.error));
        break;
      case "changed":
        events.fileChanged(message.artifactId, message.fileIndex);
        break;
      case "done":
        this.#waiting.get(message.sequence)?.resolve();
        this.#waiting.delete(message.sequence);
    }
  }

  #fail(error: RelightError): void {
    this.#failure ??= error;
    this.#start.reject(error);
    this.#start.promise.catch(() => {}); // Whoever waits has seen it; afterwards nobody does.
    for (const waiting of this.#waiting.values()) waiting.reject(error);
    this.#waiting.clear();
  }
}

/** The threads share their port, and so would a second agent: it is told by trying to take it alone. */
async function checkFree(host: string, port: number): Promise<void> {
  const probe = net.createServer();
  const done = Promise.withResolvers<void>();
  probe.once("error", (error) => done.reject(fromNodeError(error, `listen on ${host}:${port}`)));
  probe.listen({ host, port, exclusive: true }, () => probe.close(() => done.resolve()));
  await done.promise;
}
