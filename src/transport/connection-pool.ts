// SPDX-License-Identifier: Apache-2.0
// Connections to sources in one thread, kept open between exchanges: who is asked again answers at once.
// One that has died unnoticed is replaced; deadlines are looked at ten times a second.

import { createSecureContext } from "node:tls";
import { MiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import { secureContextOptions } from "../trust/tls.ts";
import { type TlsMaterial, tlsIdentity } from "../trust/tls-material.ts";
import { BufferPool } from "./buffer-pool.ts";
import { type BodySink, type ClientIdentity, Connection, type Method } from "./http-connection.ts";
import type { FetchLimits } from "./transport.ts";

const checkMs = 100;
/** Unused connections beyond this are closed. */
const idleMax = 16;

export interface Exchange {
  readonly id: number;
  readonly endpoint: string;
  readonly path: string;
  /** GET when not given. */
  readonly method?: Method;
}

export class ConnectionPool {
  readonly #limits: FetchLimits;
  readonly #buffers: BufferPool;
  readonly #active = new Map<number, Connection>();
  readonly #cancelled = new Set<number>();
  #own: ClientIdentity | null;
  #idle: Connection[] = [];
  #lastCheckMs = performance.now();

  /** @param options `partBytesMax`: of the longest part of a body that is looked at in one */
  constructor(options: {
    readonly limits: FetchLimits;
    readonly tls: TlsMaterial | null;
    readonly partBytesMax: number;
  }) {
    this.#limits = options.limits;
    this.#own = options.tls === null ? null : clientIdentity(options.tls);
    // A whole part must fit, and a read's worth of the next one beside it.
    const bufferBytes = options.partBytesMax + MiB;
    this.#buffers = new BufferPool({ bufferBytes, keptMax: idleMax });
    setInterval(() => this.#checkDeadlines(), checkMs);
  }

  /** One exchange, on an idle connection when there is one; on a new one when that had died unnoticed. */
  async exchange(what: Exchange, sink: BodySink): Promise<void> {
    try {
      const waiting = this.#takeIdle(what.endpoint);
      if (waiting === null) await this.#runOn(this.#open(what.endpoint), what, sink);
      else await this.#again(waiting, what, sink);
    } finally {
      this.#cancelled.delete(what.id);
    }
  }

  /** Ends an exchange that is under way, or about to be. */
  cancel(id: number): void {
    this.#cancelled.add(id);
    this.#active.get(id)?.fail(cancellation());
  }

  /** An exchange that was cancelled before it came here is forgotten. */
  forget(id: number): void {
    this.#cancelled.delete(id);
  }

  /** What we show counts for connections from now on, whom we believe for those under way as well. */
  renew(material: TlsMaterial): void {
    const own = clientIdentity(material);
    this.#own = own;
    for (const connection of this.#idle.splice(0)) connection.fail(cancellation());
    for (const connection of this.#active.values()) connection.judgeAgain(own);
  }

  async #again(waiting: Connection, what: Exchange, sink: BodySink): Promise<void> {
    try {
      await this.#runOn(waiting, what, sink);
    } catch (error) {
      if (!waiting.wasStale) throw error;
      await this.#runOn(this.#open(what.endpoint), what, sink);
    }
  }

  async #runOn(connection: Connection, what: Exchange, sink: BodySink): Promise<void> {
    const { id, path, method = "GET" } = what;
    this.#active.set(id, connection);
    if (this.#cancelled.has(id)) connection.fail(cancellation());
    try {
      await connection.run(path, sink, method);
    } finally {
      this.#active.delete(id);
    }
    if (connection.isUsable) this.#keep(connection);
  }

  #takeIdle(endpoint: string): Connection | null {
    this.#idle = this.#idle.filter((connection) => connection.isUsable);
    const at = this.#idle.findIndex((connection) => connection.endpoint === endpoint);
    return at === -1 ? null : (this.#idle.splice(at, 1)[0] ?? null);
  }

  #open(endpoint: string): Connection {
    return new Connection(endpoint, {
      buffer: this.#buffers.take(),
      limits: this.#limits,
      tls: this.#own,
      onClosed: (buffer) => this.#buffers.give(buffer),
    });
  }

  #keep(connection: Connection): void {
    this.#idle.unshift(connection);
    for (const surplus of this.#idle.splice(idleMax)) surplus.fail(cancellation());
  }

  #checkDeadlines(): void {
    const nowMs = performance.now();
    const heldUpMs = nowMs - this.#lastCheckMs - checkMs;
    this.#lastCheckMs = nowMs;
    for (const connection of this.#active.values()) {
      if (heldUpMs > checkMs) connection.forgive(heldUpMs);
      connection.checkDeadlines(nowMs);
    }
  }
}

function clientIdentity(material: TlsMaterial): ClientIdentity {
  const identity = tlsIdentity(material);
  return { identity, context: createSecureContext(secureContextOptions(identity)) };
}

function cancellation(): RelightError {
  return new RelightError("cancelled", "Cannot finish the transfer: it was cancelled");
}
