// SPDX-License-Identifier: Apache-2.0
// The coordinator in virtual time: the production registry and service over the production memory
// store, which outlives a restart and can be made to fail; and the agents' client of it, whose calls
// are lost, late or delivered twice as the faults of this run say.

import { create } from "@bufbuild/protobuf";
import type {
  CoordinatorClient,
  FoundSource,
  Identity,
  Publication,
} from "../../src/agent/coordinator-client.ts";
import type { Session, SessionChange, SessionHello } from "../../src/agent/coordinator-session.ts";
import { Registry } from "../../src/coordinator/registry.ts";
import { RelightService } from "../../src/coordinator/relight-service.ts";
import { asRelightError, RelightError } from "../../src/errors.ts";
import { SourceIdentitySchema, SourceStatus } from "../../src/protocol/gen/p2p_pb.ts";
import {
  FindRequestSchema,
  type FoundSource as FoundMessage,
  PublishRequestSchema,
  WithdrawRequestSchema,
} from "../../src/protocol/gen/relight_pb.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { Store } from "../../src/store/store.ts";
import type { Network, Node } from "./network.ts";
import type { Chance, Process, Timeline } from "./timeline.ts";

/** As src/coordinator/main.ts turns the clock. */
const tickMs = 250;
const callMsMax = 3_000;
const budgetMs = 10_000;
const never = new AbortController().signal;

/** What may happen to a message, as chances. */
export interface Mail {
  lost: number;
  late: number;
  lateMsMax: number;
  repeated: number;
}

export const goodMail: Mail = { lost: 0, late: 0, lateMsMax: 0, repeated: 0 };

/** How the store behaves now. A failing write may or may not have been done. */
export interface StoreMood {
  failing: number;
  slowMs: number;
}

interface Running {
  readonly registry: Registry;
  readonly service: RelightService;
  isStopped: boolean;
}

export class SimCoordinator {
  readonly node: Node;
  readonly mail: Mail = { ...goodMail };
  readonly mood: StoreMood = { failing: 0, slowMs: 0 };
  startedMs = 0;
  calls = 0;
  readonly #timeline: Timeline;
  readonly #chance: Chance;
  readonly #store: Store;
  /** A canary's defect: silent sessions never end. */
  readonly #isForgetful: boolean;
  #running: Running | null = null;
  #sessions = 0;
  /** When each worker's session was last heard, for the checkers. */
  readonly heardMs = new Map<string, number>();

  constructor(timeline: Timeline, chance: Chance, options: { node: Node; isForgetful: boolean }) {
    this.#timeline = timeline;
    this.#chance = chance;
    this.node = options.node;
    this.#isForgetful = options.isForgetful;
    this.#store = moody(new MemoryStore(), { timeline, chance, mood: this.mood });
  }

  get registry(): Registry | null {
    return this.#running?.registry ?? null;
  }

  async start(): Promise<void> {
    const registry = new Registry({
      store: this.#store,
      clock: { now: () => Math.floor(this.#timeline.wallMs) },
      newSessionId: () => `session-${++this.#sessions}`,
      ...(this.#isForgetful ? { limits: { sessionGraceMs: 1e9, heartbeatTimeoutMs: 1e9 } } : {}),
    });
    const service = new RelightService(registry, { budgetMs });
    const running: Running = { registry, service, isStopped: false };
    // A store that does not answer keeps a coordinator from starting; it is started again.
    for (;;) {
      try {
        await registry.open(never);
        break;
      } catch {
        await new Promise<void>((resolve) => this.#timeline.after(500, resolve));
      }
    }
    this.startedMs = this.#timeline.nowMs;
    this.#running = running;
    this.#tick(running);
  }

  /** Everything in memory is gone, and so are its connections. */
  kill(): void {
    if (this.#running !== null) this.#running.isStopped = true;
    this.#running = null;
  }

  /** What arrives from the network. `answer` is not called when the coordinator dies meanwhile. */
  receive<Result>(
    act: (running: { registry: Registry; service: RelightService }) => Promise<Result>,
    answer: (outcome: PromiseSettledResult<Result>) => void,
  ): void {
    const running = this.#running;
    if (running === null) {
      const message = "Cannot reach the coordinator: connection refused";
      const reason = new RelightError("coordinator_unreachable", message);
      answer({ status: "rejected", reason });
      return;
    }
    this.calls++;
    act(running).then(
      (value) => running.isStopped || answer({ status: "fulfilled", value }),
      (reason: unknown) => running.isStopped || answer({ status: "rejected", reason }),
    );
  }

  #tick(running: Running): void {
    this.#timeline.after(tickMs, () => {
      if (running.isStopped) return;
      // As src/coordinator/main.ts: never twice at once.
      void running.registry.advance(never).then(() => this.#tick(running));
    });
  }

  /** When copies of a message arrive, from now; empty when it is lost. */
  deliveries(network: Network, from: Node, to: Node, isStream = false): number[] {
    const { lost, late, lateMsMax, repeated } = this.mail;
    if (!network.reaches(from, to) || (!isStream && this.#chance.is(lost))) return [];
    const once = () =>
      network.latencyMs + (this.#chance.is(late) ? this.#chance.between(0, lateMsMax) : 0);
    return !isStream && this.#chance.is(repeated) ? [once(), once()] : [once()];
  }
}

/** Fails and dawdles as the mood says. */
function moody(
  store: MemoryStore,
  world: { timeline: Timeline; chance: Chance; mood: StoreMood },
): Store {
  const { timeline, chance, mood } = world;
  const wait = async () => {
    if (mood.slowMs > 0) {
      const ms = chance.between(0, mood.slowMs);
      await new Promise<void>((resolve) => timeline.after(ms, resolve));
    }
  };
  const fail = () => {
    if (chance.is(mood.failing)) {
      throw new RelightError("store_unavailable", "Cannot use the store: it does not answer");
    }
  };
  const through = async <Result>(act: () => Promise<Result>): Promise<Result> => {
    await wait();
    fail();
    const result = await act();
    fail();
    return result;
  };
  return {
    get: (key, signal) => through(() => store.get(key, signal)),
    read: (key, signal) => through(() => store.read(key, signal)),
    put: (put, signal) => through(() => store.put(put, signal)),
    remove: (key, revision, signal) => through(() => store.remove(key, revision, signal)),
    ofSource: (sourceId, signal) => through(() => store.ofSource(sourceId, signal)),
    onShelf: (at, signal) => through(() => store.onShelf(at, signal)),
    all: async function* (signal) {
      await wait();
      fail();
      yield* store.all(signal);
    },
    putBoot: (boot, signal) => through(() => store.putBoot(boot, signal)),
    boots: (limit, signal) => through(() => store.boots(limit, signal)),
    document: (name, signal) => through(() => store.document(name, signal)),
    putDocument: (put, signal) => through(() => store.putDocument(put, signal)),
    documentNames: (signal) => through(() => store.documentNames(signal)),
    probe: (signal) => through(() => store.probe(signal)),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}

export interface ClientParts {
  readonly coordinator: SimCoordinator;
  readonly network: Network;
  readonly chance: Chance;
  readonly node: Node;
  readonly process: Process;
  readonly workerId: string;
  /** Every answer to Find, for the checkers. */
  readonly onFound: (sources: readonly FoundSource[]) => void;
}

export class SimClient implements CoordinatorClient {
  readonly #parts: ClientParts;

  constructor(parts: ClientParts) {
    this.#parts = parts;
  }

  async find(
    identities: readonly Identity[],
    options: { readonly excludeWorkerId?: string; readonly limit?: number },
    signal: AbortSignal,
  ): Promise<readonly (readonly FoundSource[])[]> {
    const { excludeWorkerId = "", limit = 0 } = options;
    const request = create(FindRequestSchema, {
      identities: identities.map((identity) => create(SourceIdentitySchema, identity)),
      excludeWorkerId,
      limit,
    });
    const { results } = await this.call(
      async ({ service }) => {
        const found = await service.find(request, never);
        for (const { sources } of found.results) this.#parts.onFound(sources.map(foundSource));
        return found;
      },
      { signal },
    );
    return results.map(({ sources }) => sources.map(foundSource));
  }

  async openSession(hello: SessionHello, signal: AbortSignal): Promise<Session> {
    const session = new SimSession(this, hello, this.#parts);
    await session.connect(signal);
    return session;
  }

  async publish(
    publication: Publication,
    signal: AbortSignal,
  ): Promise<{ readonly sourceId: string }> {
    const { artifact, identity } = publication;
    const request = create(PublishRequestSchema, {
      sessionId: publication.sessionId,
      word: publication.word ?? 0,
      workerId: publication.workerId,
      identity: create(SourceIdentitySchema, identity),
      endpoints: [...publication.endpoints],
      complete: publication.complete,
      status: SourceStatus.READY,
      artifact: {
        ...artifact,
        totalBytes: BigInt(artifact.totalBytes),
        baseArtifactIds: [...artifact.baseArtifactIds],
      },
    });
    const act = ({ service }: { service: RelightService }) => service.publish(request, never);
    const { sourceId } = await this.call(act, { signal });
    return { sourceId };
  }

  async withdraw(
    what: Parameters<CoordinatorClient["withdraw"]>[0],
    signal: AbortSignal,
  ): Promise<{ readonly withdrawn: number }> {
    const request = create(WithdrawRequestSchema, what);
    const act = ({ service }: { service: RelightService }) => service.withdraw(request, never);
    const { withdrawn } = await this.call(act, { signal });
    return { withdrawn };
  }

  updateStatus = unused;
  watch = unused;
  reportBoot = unused;
  listBoots = unused;
  listSources = unused;
  identityOf = unused;

  async [Symbol.asyncDispose](): Promise<void> {}

  /** One call: there and back, with a limit. */
  call<Result>(
    act: (running: { registry: Registry; service: RelightService }) => Promise<Result>,
    options: { signal: AbortSignal; isStream?: boolean },
  ): Promise<Result> {
    const { coordinator, network, node, process } = this.#parts;
    const { promise, resolve, reject } = Promise.withResolvers<Result>();
    const { signal, isStream = false } = options;
    const post = (from: Node, to: Node, act: () => void) => {
      for (const ms of coordinator.deliveries(network, from, to, isStream)) network.after(ms, act);
    };
    const limit = process.after(callMsMax, () => {
      reject(new RelightError("coordinator_unreachable", "Cannot finish the call: no answer"));
    });
    const onAbort = () => reject(asRelightError(signal.reason));
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    else
      post(node, coordinator.node, () =>
        coordinator.receive(act, (outcome) =>
          post(coordinator.node, node, () =>
            process.deliver(() => {
              if (outcome.status === "fulfilled") resolve(outcome.value);
              else reject(outcome.reason);
            }),
          ),
        ),
      );
    return promise.finally(() => {
      limit.cancel();
      signal.removeEventListener("abort", onAbort);
    });
  }
}

/** As the real session: heartbeats, `lost` when they fail for long, back-off, `restored`. */
class SimSession implements Session {
  isConnected = false;
  id = "";
  readonly #client: SimClient;
  readonly #hello: SessionHello;
  readonly #parts: ClientParts;
  readonly #closed = new AbortController();
  readonly #listeners = new Set<(change: SessionChange) => void>();
  #readers = 0;
  #answeredMs = 0;

  constructor(client: SimClient, hello: SessionHello, parts: ClientParts) {
    this.#client = client;
    this.#hello = hello;
    this.#parts = parts;
  }

  setReaders(readers: number): void {
    this.#readers = readers;
  }

  onChange(listener: (change: SessionChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async connect(signal: AbortSignal): Promise<boolean> {
    const sessionId = this.id === "" ? null : this.id;
    const { coordinator } = this.#parts;
    const welcome = await this.#client.call(
      async ({ registry }) => {
        const { id, resumed } = registry.hello({ ...this.#hello, sessionId });
        coordinator.heardMs.set(this.#parts.workerId, this.#parts.network.now());
        return { id, resumed, heartbeatMs: registry.limits.heartbeatMs };
      },
      { signal, isStream: true },
    );
    if (this.#closed.signal.aborted) throw this.#closed.signal.reason;
    this.id = welcome.id;
    this.isConnected = true;
    this.#answeredMs = this.#parts.process.clock.monotonicMs();
    this.#beat(welcome.heartbeatMs);
    return welcome.resumed;
  }

  async close(signal: AbortSignal): Promise<void> {
    if (this.#closed.signal.aborted) return;
    const wasConnected = this.isConnected;
    this.isConnected = false;
    this.#closed.abort(new RelightError("cancelled", "The session was closed"));
    if (!wasConnected) return;
    const { id } = this;
    await this.#client.call(({ registry }) => registry.goodbye(id, never), {
      signal,
      isStream: true,
    });
  }

  #beat(everyMs: number): void {
    const { id } = this;
    this.#parts.process.after(everyMs, () => {
      if (!this.isConnected || this.id !== id) return;
      this.#client
        .call(async ({ registry }) => this.#heard(registry, id), {
          signal: this.#closed.signal,
          isStream: true,
        })
        .then(
          (isKnown) => (isKnown ? this.#answered() : this.#lost()),
          (error: unknown) => this.#failed(asRelightError(error)),
        );
      this.#beat(everyMs);
    });
  }

  async #heard(registry: Registry, id: string): Promise<boolean> {
    const isKnown = registry.heartbeat(id, this.#readers);
    const { coordinator, network, workerId } = this.#parts;
    if (isKnown) coordinator.heardMs.set(workerId, network.now());
    return isKnown;
  }

  #answered(): void {
    this.#answeredMs = this.#parts.process.clock.monotonicMs();
  }

  /** A refused connection is seen at once, a silent one when the pings have failed. */
  #failed(error: RelightError): void {
    const silentMs = this.#parts.process.clock.monotonicMs() - this.#answeredMs;
    if (error.message.includes("refused") || silentMs > 8_000) this.#lost();
  }

  #lost(): void {
    if (!this.isConnected) return;
    this.isConnected = false;
    const error = new RelightError("coordinator_unreachable", "Cannot keep the session");
    this.#tell({ type: "lost", error });
    void this.#reconnect();
  }

  async #reconnect(): Promise<void> {
    const { signal } = this.#closed;
    const { process, chance } = this.#parts;
    for (let waitMs = 100; !signal.aborted; waitMs = Math.min(1_000, 2 * waitMs)) {
      try {
        await process.clock.sleep(waitMs * (0.5 + chance.random() / 2), signal);
        const resumed = await this.connect(signal);
        this.#tell({ type: "restored", resumed, sessionId: this.id });
        return;
      } catch {
        // Still away, or closed: the loop sees which.
      }
    }
  }

  #tell(change: SessionChange): void {
    for (const listener of this.#listeners) listener(change);
  }
}

function unused(): Promise<never> {
  return Promise.reject(new Error("the simulated agents do not use this call"));
}

function foundSource(message: FoundMessage): FoundSource {
  const { sourceId, workerId, endpoints, complete, readers, artifact, publishedAtMs } = message;
  return {
    sourceId,
    workerId,
    endpoints,
    complete,
    readers,
    publishedAtMs: Number(publishedAtMs),
    artifact: {
      artifactId: artifact?.artifactId ?? "",
      family: artifact?.family ?? "",
      totalBytes: Number(artifact?.totalBytes ?? 0n),
      fileCount: 0,
      pieceCount: 0,
      baseArtifactIds: [],
    },
  };
}
