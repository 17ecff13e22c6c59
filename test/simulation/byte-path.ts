// SPDX-License-Identifier: Apache-2.0
// The transport port over the simulated network: a server that admits readers with production's own
// counters, and a fetcher that verifies before it writes. Failures take the time and the code that the
// real one takes: a dead host a connection's limit, a dead process a round trip, silence its own limit.

import type { Hex32 } from "../../src/core/digest.ts";
import { PieceSet } from "../../src/core/pieces.ts";
import { MiB } from "../../src/core/units.ts";
import { type Code, RelightError } from "../../src/errors.ts";
import { ServerCounters } from "../../src/transport/http-server-messages.ts";
import {
  fetchLimits,
  type Offer,
  type OfferedFile,
  type PieceFetcher,
  type PieceOrder,
  type PieceReceipt,
  type PieceServer,
  type ServerStats,
  type SourceAddress,
  serverLimits,
} from "../../src/transport/transport.ts";
import type { Checkers } from "./checkers.ts";
import type { Flow, Network, Node } from "./network.ts";
import type { Chance, Process, Timer } from "./timeline.ts";

/** Verified pieces are told in groups of about this size, as the real fetcher does. */
const groupBytes = 2 * MiB;

export interface Host {
  readonly node: Node;
  /** Null: the host is up and nothing listens. */
  server: SimServer | null;
}

export interface BytePathParts {
  readonly network: Network;
  readonly chance: Chance;
  readonly checkers: Checkers;
  readonly hosts: ReadonlyMap<string, Host>;
  /** Chance that a piece arrives with a wrong bit; 0 when that fault is not in this run. */
  flips: number;
  /** A canary's defect: wrong pieces are written as they come. */
  readonly isBlind: boolean;
  /** Another canary's: nobody is turned away. */
  readonly isCrowded: boolean;
}

export class SimServer implements PieceServer {
  readonly endpoint: string;
  readonly process: Process;
  readonly offers = new Map<Hex32, Offer>();
  readonly readersMax: number;
  readonly #counters = new ServerCounters(ServerCounters.allocate());
  /** Those that are being answered with pieces. */
  readonly readers = new Set<object>();
  /** What to call when the process dies. */
  readonly connections = new Set<() => void>();

  constructor(options: { endpoint: string; process: Process; readersMax: number }) {
    this.endpoint = options.endpoint;
    this.process = options.process;
    this.readersMax = options.readersMax;
  }

  async offer(offer: Offer): Promise<void> {
    this.offers.set(offer.artifactId, offer);
  }

  async relocate(_artifactId: Hex32, _files: readonly OfferedFile[]): Promise<void> {}

  async withdraw(artifactId: Hex32): Promise<void> {
    this.offers.delete(artifactId);
  }

  stats(): ServerStats {
    return this.#counters.read();
  }

  admit(isCrowded: boolean): boolean {
    return this.#counters.admit(isCrowded ? Number.MAX_SAFE_INTEGER : this.readersMax);
  }

  release(bytes: number): void {
    this.#counters.sent(Math.round(bytes));
    this.#counters.release();
  }

  /** The process is gone: its connections are reset. */
  kill(): void {
    for (const reset of [...this.connections]) reset();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill();
  }
}

export class SimFetcher implements PieceFetcher {
  readonly #parts: BytePathParts;
  readonly #node: Node;
  readonly #process: Process;
  readonly #exchanges = new Set<{ abandon(): void }>();

  constructor(parts: BytePathParts, at: { node: Node; process: Process }) {
    this.#parts = parts;
    this.#node = at.node;
    this.#process = at.process;
  }

  get underWay(): number {
    return this.#exchanges.size;
  }

  manifest(at: SourceAddress, _limits: unknown, signal: AbortSignal): Promise<Buffer> {
    return this.#exchange<Buffer>(at, signal, (server, exchange) => {
      const offer = server.offers.get(at.artifactId);
      if (offer === undefined) return exchange.answer("source_gone");
      const { manifest } = offer;
      exchange.send([manifest.length], () => exchange.done(manifest));
    });
  }

  statement(at: SourceAddress, _limits: unknown, signal: AbortSignal): Promise<Buffer> {
    return this.#exchange<Buffer>(at, signal, (server, exchange) => {
      const statement = server.offers.get(at.artifactId)?.statement;
      if (statement === undefined) return exchange.answer("source_gone");
      exchange.send([statement.length], () => exchange.done(statement));
    });
  }

  have(at: SourceAddress, pieceCount: number, signal: AbortSignal): Promise<PieceSet> {
    return this.#exchange<PieceSet>(at, signal, (server, exchange) => {
      const offer = server.offers.get(at.artifactId);
      if (offer === undefined) return exchange.answer("source_gone");
      const have = PieceSet.fromBytes(pieceCount, offer.have.toBytes());
      exchange.soon(() => exchange.done(have));
    });
  }

  pieces(
    order: PieceOrder,
    onVerified: (pieces: readonly number[]) => void,
    signal: AbortSignal,
  ): Promise<PieceReceipt> {
    this.#parts.checkers.fetches(order.into.root, order.pieces);
    return this.#exchange<PieceReceipt>(order, signal, (server, exchange) => {
      const offer = server.offers.get(order.artifactId);
      if (offer === undefined) return exchange.answer("source_gone");
      if (!server.admit(this.#parts.isCrowded)) return exchange.answer("source_busy");
      exchange.holdReader(server);
      this.#sendPieces(exchange, { order, offer, onVerified });
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** The process is gone: nobody waits for the answers. */
  kill(): void {
    for (const exchange of [...this.#exchanges]) exchange.abandon();
  }

  #sendPieces(
    exchange: Exchange<PieceReceipt>,
    transfer: { order: PieceOrder; offer: Offer; onVerified: (pieces: readonly number[]) => void },
  ): void {
    const { order, offer, onVerified } = transfer;
    const sent = order.pieces.filter((piece) => offer.have.has(piece));
    const refused = order.pieces.filter((piece) => !offer.have.has(piece));
    const { groups, marks } = inGroups(order, sent);
    const bytes = marks.at(-1) ?? 0;
    if (groups.length === 0) {
      exchange.soon(() => exchange.done({ bytes: 0, refused }));
      return;
    }
    exchange.send(marks, (index) => {
      const group = groups[index] ?? [];
      const good = this.#verify(order, group);
      if (good.length > 0) onVerified(good);
      if (good.length < group.length) exchange.fail("digest_mismatch");
      else if (index === groups.length - 1) exchange.done({ bytes, refused });
    });
  }

  /** The pieces before the first wrong one. */
  #verify({ into }: PieceOrder, group: readonly number[]): readonly number[] {
    const { chance, checkers, flips, isBlind } = this.#parts;
    const good: number[] = [];
    for (const piece of group) {
      const isRight = !chance.is(flips);
      if (!isRight && !isBlind) break;
      checkers.writes(into.root, piece, isRight);
      into.have.add(piece);
      good.push(piece);
    }
    return good;
  }

  #exchange<Result>(
    at: SourceAddress,
    signal: AbortSignal,
    serve: (server: SimServer, exchange: Exchange<Result>) => void,
  ): Promise<Result> {
    const host = this.#parts.hosts.get(at.endpoint);
    if (host === undefined) throw new Error(`no host is at ${at.endpoint}`);
    const ends = { from: host.node, to: this.#node };
    const exchange: Exchange<Result> = new Exchange(this.#parts, ends, {
      process: this.#process,
      signal,
      onEnd: () => this.#exchanges.delete(exchange),
    });
    this.#exchanges.add(exchange);
    exchange.connect(host, serve);
    return exchange.promise;
  }
}

/** One request and its answer. Whatever happens, it settles once and leaves nothing behind. */
class Exchange<Result> {
  readonly promise: Promise<Result>;
  readonly #parts: BytePathParts;
  readonly #ends: { from: Node; to: Node };
  readonly #options: { process: Process; signal: AbortSignal; onEnd: () => void };
  readonly #settle = Promise.withResolvers<Result>();
  readonly #onAbort = () => this.#reject(this.#options.signal.reason);
  readonly #onReset = () => {
    this.#flow?.cancel();
    this.answer("source_stalled");
  };
  #flow: Flow | null = null;
  #watch: Timer | null = null;
  #server: SimServer | null = null;
  #isReader = false;
  #isOver = false;

  constructor(
    parts: BytePathParts,
    ends: { from: Node; to: Node },
    options: { process: Process; signal: AbortSignal; onEnd: () => void },
  ) {
    this.promise = this.#settle.promise;
    this.#parts = parts;
    this.#ends = ends;
    this.#options = options;
  }

  connect(host: Host, serve: (server: SimServer, exchange: Exchange<Result>) => void): void {
    const { network } = this.#parts;
    const { signal, process } = this.#options;
    if (signal.aborted) {
      this.#onAbort();
      return;
    }
    signal.addEventListener("abort", this.#onAbort, { once: true });
    if (!network.connects(host.node, this.#ends.to)) {
      this.#watch = process.after(fetchLimits.connectMsMax, () => this.fail("source_unreachable"));
      return;
    }
    this.#watch = process.after(fetchLimits.firstByteMsMax, () => this.fail("source_stalled"));
    network.after(network.latencyMs, () => {
      if (this.#isOver) return;
      const { server } = host;
      if (server === null) this.answer("source_unreachable");
      else server.process.deliver(() => this.#accept(server, serve));
    });
  }

  #accept(server: SimServer, serve: (server: SimServer, exchange: Exchange<Result>) => void): void {
    if (this.#isOver) return;
    this.#server = server;
    server.connections.add(this.#onReset);
    serve(server, this);
  }

  holdReader(server: SimServer): void {
    this.#isReader = true;
    server.readers.add(this);
    this.#parts.checkers.serves(server.endpoint, server.readers.size, server.readersMax);
  }

  send(marks: readonly number[], onMark: (index: number) => void): void {
    const { network } = this.#parts;
    const { process } = this.#options;
    this.#watch?.cancel();
    this.#flow = network.start(this.#ends, marks, (index) => process.deliver(() => onMark(index)));
    this.#watchSilence(this.#flow, 0);
  }

  /** After the way back. */
  soon(act: () => void): void {
    const { network } = this.#parts;
    network.after(network.latencyMs, () => {
      if (network.connects(this.#ends.from, this.#ends.to)) this.#options.process.deliver(act);
    });
  }

  /** The source says so. */
  answer(code: Code): void {
    this.soon(() => this.fail(code));
  }

  fail(code: Code): void {
    const details = code === "source_busy" ? { retryAfterMs: serverLimits.retryAfterMs } : {};
    this.#reject(
      new RelightError(code, `Cannot fetch from "${this.#ends.from.name}"`, { details }),
    );
  }

  done(result: Result): void {
    if (this.#end()) this.#settle.resolve(result);
  }

  /** Ends without anybody being told. */
  abandon(): void {
    this.#end();
  }

  #reject(reason: unknown): void {
    if (this.#end()) this.#settle.reject(reason);
  }

  #watchSilence(flow: Flow, bytesBefore: number): void {
    this.#watch = this.#options.process.after(fetchLimits.silenceMsMax, () => {
      // A share may be small, but it is not silence: only bytes that arrived count.
      if (flow.bytesNow() - bytesBefore < fetchLimits.progressBytesMin) this.fail("source_stalled");
      else this.#watchSilence(flow, flow.bytesNow());
    });
  }

  #end(): boolean {
    if (this.#isOver) return false;
    this.#isOver = true;
    this.#options.signal.removeEventListener("abort", this.#onAbort);
    this.#watch?.cancel();
    this.#flow?.cancel();
    this.#disconnect();
    this.#options.onEnd();
    return true;
  }

  /** The source learns of an end when the reset arrives, or by its own limit when none can. */
  #disconnect(): void {
    const { network } = this.#parts;
    const server = this.#server;
    if (server === null) return;
    server.connections.delete(this.#onReset);
    if (!this.#isReader) return;
    const isHeard = network.reaches(this.#ends.to, this.#ends.from);
    const ms = isHeard ? network.latencyMs : serverLimits.readerSilenceMsMax;
    network.after(ms, () => {
      server.readers.delete(this);
      server.release(this.#flow?.bytesDone ?? 0);
    });
  }
}

function inGroups({ into }: PieceOrder, pieces: readonly number[]) {
  const groups: number[][] = [];
  const marks: number[] = [];
  let [group, bytes, since]: [number[], number, number] = [[], 0, 0];
  for (const piece of pieces) {
    group.push(piece);
    bytes += into.pieces[piece]?.length ?? 0;
    if (bytes - since < groupBytes) continue;
    groups.push(group);
    marks.push(bytes);
    [group, since] = [[], bytes];
  }
  if (group.length > 0) {
    groups.push(group);
    marks.push(bytes);
  }
  return { groups, marks };
}
