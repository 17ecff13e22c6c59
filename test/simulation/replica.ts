// SPDX-License-Identifier: Apache-2.0
// One replica of the fleet: the production agent (link, caches, warming, relay, pull) on a simulated
// node. It can be started, killed and started again; what it had installed stays on its disk.

import type { FoundSource } from "../../src/agent/coordinator-client.ts";
import { Ledger } from "../../src/agent/ledger.ts";
import { silentNarrator } from "../../src/agent/narrator.ts";
import { NodeLink } from "../../src/agent/node-link.ts";
import { createRelay } from "../../src/agent/relay.ts";
import { type CacheSettings, ReplicaCaches } from "../../src/agent/replica-caches.ts";
import { insecureTrust } from "../../src/agent/trust.ts";
import { customFamily } from "../../src/artifacts/kinds/custom.ts";
import type { SealedManifest } from "../../src/artifacts/manifest.ts";
import { silentLog } from "../../src/observe/log.ts";
import { type BytePathParts, type Host, SimFetcher, SimServer } from "./byte-path.ts";
import { SimClient, type SimCoordinator } from "./coordinator.ts";
import { offeredFile, SimDisk } from "./disk.ts";
import type { Node } from "./network.ts";
import { Process, type Timeline } from "./timeline.ts";

export const cacheName = "kernels";

/** The defaults of src/config/schema.ts. */
export const budgets = { budgetMs: 60_000, discoverMsMax: 5_000, fetchMsMax: 50_000 };
const connectMsMax = 3_000;

export interface ReplicaWorld {
  readonly timeline: Timeline;
  readonly bytePath: BytePathParts;
  readonly coordinator: SimCoordinator;
  readonly hosts: Map<string, Host>;
  readonly manifest: SealedManifest;
  readonly isRelaying: boolean;
  readonly budgets: typeof budgets;
  readonly onFound: (to: string, source: FoundSource) => void;
  /** Since when a worker can not be heard by the coordinator; absent while it can. */
  readonly lostMs: Map<string, number>;
}

interface Running {
  readonly process: Process;
  readonly server: SimServer;
  readonly fetcher: SimFetcher;
  readonly link: NodeLink;
  readonly workerId: string;
  isBooting: boolean;
}

export class Replica {
  readonly name: string;
  readonly node: Node;
  readonly disk: SimDisk;
  readonly endpoint: string;
  readersMax: number;
  running: Running | null = null;
  readonly #world: ReplicaWorld;
  readonly #host: Host;
  #starts = 0;

  constructor(
    world: ReplicaWorld,
    at: { index: number; name: string; bytesPerMs: number; readersMax: number },
  ) {
    this.#world = world;
    this.name = at.name;
    this.node = world.bytePath.network.addNode(at.name, at.bytesPerMs);
    this.disk = new SimDisk(at.name, world.bytePath.checkers);
    this.endpoint = `http://10.${at.index >> 16}.${(at.index >> 8) & 255}.${at.index & 255}:8003`;
    this.readersMax = at.readersMax;
    this.#host = { node: this.node, server: null };
    world.hosts.set(this.endpoint, this.#host);
  }

  get isWarm(): boolean {
    return this.disk.hasAll(this.#world.manifest);
  }

  /** Starts the agent and boots: ends when the engine could start. */
  start(): void {
    if (this.running !== null) return;
    const { timeline, bytePath, coordinator } = this.#world;
    const process = new Process(timeline);
    const workerId = `${this.name}-${this.#starts++}`;
    const { endpoint, readersMax, node } = this;
    const server = new SimServer({ endpoint, process, readersMax });
    const fetcher = new SimFetcher(bytePath, { node, process });
    const { network, chance } = bytePath;
    const client = new SimClient({
      coordinator,
      network,
      chance,
      node,
      process,
      workerId,
      onFound: (sources) => {
        for (const source of sources) this.#world.onFound(this.name, source);
      },
    });
    const link = new NodeLink({
      client,
      server,
      nodeId: this.name,
      workerId,
      endpoint,
      callMsMax: connectMsMax,
      clock: process.clock,
      log: silentLog,
    });
    this.#host.server = server;
    this.running = { process, server, fetcher, link, workerId, isBooting: true };
    void this.#boot(this.running);
  }

  /** kill -9: the host stays up and refuses connections. */
  kill(): void {
    const { running } = this;
    if (running === null) return;
    this.running = null;
    this.markLost(running.workerId);
    this.#host.server = null;
    this.node.isStill = false;
    running.process.kill();
    running.server.kill();
    running.fetcher.kill();
    this.#world.bytePath.network.reconsider(this.node);
  }

  markLost(workerId = this.running?.workerId ?? ""): void {
    const { lostMs, timeline } = this.#world;
    if (!lostMs.has(workerId)) lostMs.set(workerId, timeline.nowMs);
  }

  /** A good end: everything is withdrawn first. */
  async stop(): Promise<void> {
    await this.running?.link.withdraw();
    this.kill();
  }

  async #boot(running: Running): Promise<void> {
    const { process, link, server } = running;
    const startedMs = this.#world.timeline.nowMs;
    const ledger = new Ledger({
      clock: process.clock,
      nodeId: this.name,
      model: "simulated",
      program: "engine",
    });
    const caches = new ReplicaCaches(
      { command: [], env: {} },
      { settings: this.#settings(), parts: this.#parts(running), ledger },
    );
    await caches.prepare(true, new AbortController().signal);
    if (!process.isAlive) return;
    running.isBooting = false;
    const { timeline, bytePath } = this.#world;
    const [cache] = ledger.record.caches;
    bytePath.checkers.boot(
      {
        node: this.name,
        state: this.isWarm && cache?.state === "cold" ? "present" : (cache?.state ?? "cold"),
        code: cache?.code ?? ledger.record.code,
        tookMs: timeline.nowMs - startedMs,
        endedMs: timeline.nowMs,
      },
      this.#world.budgets.budgetMs + slackMs,
    );
    // As the publisher does once the engine is healthy: offers what lies there.
    if (!this.isWarm || !(this.#world.isRelaying || this.name === "origin")) return;
    const { manifest } = this.#world;
    const family = customFamily(cacheName, "/sim");
    const relay = createRelay({
      server,
      announce: link.announce,
      retract: link.retract,
      log: silentLog,
    });
    await relay.installed({ family, manifest, files: manifest.files.map(offeredFile) });
  }

  #settings(): CacheSettings {
    return {
      facts: { model: "simulated" },
      extraIdentity: {},
      families: [],
      // The real disk is not touched: nothing is there, and nothing is written.
      customCaches: [customFamily(cacheName, `/nonexistent/relight-simulation/${this.name}`)],
      python: "",
      isPublishing: this.#world.isRelaying,
      ...this.#world.budgets,
      settleMs: 2_000,
      deltaIntervalMs: 5_000,
    };
  }

  #parts({ process, link, server, fetcher }: Running) {
    return {
      link,
      server,
      fetcher,
      sealer: { seal: unused, [Symbol.asyncDispose]: async () => {} },
      claim: this.disk.claimBy(process),
      // Who may author is decided in one place (trust/decide.ts) that no network changes.
      trust: insecureTrust,
      clock: process.clock,
      random: this.#world.bytePath.chance.random,
      log: silentLog,
      narrator: silentNarrator,
    };
  }
}

/** Cancelling what is under way takes a moment. */
const slackMs = 250;

function unused(): Promise<never> {
  return Promise.reject(new Error("the simulated replicas compile nothing"));
}
