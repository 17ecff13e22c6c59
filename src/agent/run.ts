// SPDX-License-Identifier: Apache-2.0
// The life of one replica under `relight run`: learn who it is, install what peers have, start the
// engine, publish what it compiled once it is healthy, keep publishing, withdraw at the end. Whatever
// fails before the start is a cold start with a code; the engine starts within the budget regardless.

import { type Cache, chooseCaches } from "../artifacts/families.ts";
import type { Environment, Facts } from "../artifacts/family.ts";
import { countHits, unitsOf } from "../artifacts/hits.ts";
import { compileConfigDigest, frameworkOf, identityOf, mergeFacts } from "../artifacts/identity.ts";
import { readReceipts } from "../artifacts/receipt.ts";
import { listCache } from "../artifacts/seal.ts";
import type { Sealer } from "../artifacts/sealer.ts";
import { count, formatBytes, formatMs } from "../core/units.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import type { Clock } from "../platform/clock.ts";
import { startDeadline } from "../platform/deadline.ts";
import type { PieceFetcher, PieceServer } from "../transport/transport.ts";
import { writeBoot } from "./boot-store.ts";
import { defaultHealthUrl, type Engine, startEngine, waitUntilHealthy } from "./engine.ts";
import { type CacheRecord, Ledger, outcomeOf } from "./ledger.ts";
import type { Narrator } from "./narrator.ts";
import type { NodeLink } from "./node-link.ts";
import { probeFacts } from "./probe.ts";
import { Publisher } from "./publisher.ts";
import { createRelay, noRelay } from "./relay.ts";
import { type Candidate, recoverCache, warmCache } from "./warm.ts";

/** Beyond this a first publication goes out without what still settles; the delta brings it. */
const settleMsMax = 15_000;

export interface RunSettings {
  readonly nodeId: string;
  readonly stateFolder: string;
  /** Facts that the user gave; empty ones are unknown. */
  readonly facts: Partial<Record<keyof Facts, string>>;
  readonly extraIdentity: Readonly<Record<string, string>>;
  readonly families: readonly string[];
  readonly customCaches: readonly { name: string; folder: string }[];
  readonly healthUrl: string | null;
  readonly python: string;
  readonly isInstalling: boolean;
  readonly isPublishing: boolean;
  readonly budgetMs: number;
  readonly discoverMsMax: number;
  readonly fetchMsMax: number;
  readonly healthMsMax: number;
  readonly settleMs: number;
  readonly deltaIntervalMs: number;
}

export interface RunParts {
  readonly link: NodeLink;
  readonly server: PieceServer;
  readonly fetcher: PieceFetcher;
  readonly sealer: Sealer;
  readonly clock: Clock;
  readonly random: () => number;
  readonly log: Log;
  readonly narrator: Narrator;
}

interface CacheState {
  readonly cache: Cache;
  readonly record: CacheRecord;
  readonly publisher: Publisher;
  /** Units in the cache before the engine ran. */
  before: ReadonlySet<string>;
}

/** @returns the engine's exit code. @throws RelightError `engine_start_failed`, `config_invalid`. */
export async function runReplica(
  command: readonly string[],
  env: Environment,
  options: { settings: RunSettings; parts: RunParts },
): Promise<number> {
  return new Run(command, env, options).run();
}

class Run {
  readonly #command: readonly string[];
  readonly #env: Environment;
  readonly #settings: RunSettings;
  readonly #parts: RunParts;
  readonly #ledger: Ledger;
  readonly #framework: string;
  #caches: CacheState[] = [];

  constructor(
    command: readonly string[],
    env: Environment,
    options: { settings: RunSettings; parts: RunParts },
  ) {
    this.#command = command;
    this.#env = env;
    this.#settings = options.settings;
    this.#parts = options.parts;
    this.#framework = frameworkOf(command);
    const program = command[0]?.split("/").at(-1) ?? "";
    this.#ledger = new Ledger({
      clock: this.#parts.clock,
      nodeId: this.#settings.nodeId,
      model: this.#settings.facts.model ?? "",
      program,
    });
  }

  async run(): Promise<number> {
    const { record } = this.#ledger;
    await this.#prepare();
    const start = this.#ledger.startPhase("engine");
    using engine = await startEngine(this.#command, this.#env);
    record.engineStartedMs = this.#ledger.elapsedMs();
    // Asked to stop, the engine drains for a while; nobody should be sent here any more.
    engine.stopping.addEventListener("abort", () => void this.#parts.link.withdraw(), {
      once: true,
    });
    const background = this.#serve(engine, start);
    record.exitCode = await engine.exited;
    start.endMs ??= this.#ledger.elapsedMs();
    await background;
    await this.#keepRecord();
    return record.exitCode;
  }

  /** Everything before the engine starts. Never fails: what goes wrong is in the ledger. */
  async #prepare(): Promise<void> {
    const { settings, ledger } = { settings: this.#settings, ledger: this.#ledger };
    using budget = startDeadline("warming the caches", settings.budgetMs);
    try {
      const facts = await ledger.phase("identify", () => this.#identify(budget.signal));
      this.#caches = this.#chooseCaches(facts);
      if (settings.isInstalling) await this.#warmAll(budget.signal);
    } catch (thrown) {
      if (thrown instanceof RelightError && thrown.code === "config_invalid") throw thrown;
      ledger.cold(ledger.record, thrown);
      for (const { record } of this.#caches)
        if (record.state === "cold") ledger.cold(record, thrown);
    }
    this.#sayOutcome();
  }

  async #identify(signal: AbortSignal): Promise<Facts> {
    const { facts, python, discoverMsMax } = this.#settings;
    using deadline = startDeadline("the probe", discoverMsMax, signal);
    const own = {
      framework: this.#framework,
      compile_config: compileConfigDigest(this.#command, this.#env),
      machine: machine(),
    };
    try {
      const probed = await probeFacts({
        command: this.#command,
        python,
        framework: this.#framework,
        env: this.#env,
        signal: deadline.signal,
      });
      return mergeFacts(own, probed.facts, facts);
    } catch (thrown) {
      const { code, message } = asRelightError(thrown);
      this.#parts.log.warn("failure", { code, message });
      return mergeFacts(own, facts);
    }
  }

  #chooseCaches(facts: Facts): CacheState[] {
    const { families, customCaches, extraIdentity, settleMs } = this.#settings;
    const { link, sealer, server, clock } = this.#parts;
    link.identify(facts, extraIdentity);
    link.start();
    const caches = chooseCaches({ env: this.#env, facts, named: families, custom: customCaches });
    if (caches.length === 0)
      this.#parts.narrator.say(
        "no cache to exchange: name one with --cache NAME=DIR or --families",
      );
    this.#ledger.record.unknownFacts = [
      ...new Set(caches.flatMap(({ family }) => identityOf(family, facts, {}).unknown)),
    ];
    return caches.map((cache) => ({
      cache,
      record: this.#ledger.cache(cache.family.name, cache.root),
      publisher: new Publisher(cache, { sealer, server, announce: link.announce, clock, settleMs }),
      before: unitsOf(cache.family, listCache(cache)),
    }));
  }

  async #warmAll(signal: AbortSignal): Promise<void> {
    const { clock } = this.#parts;
    const found = await this.#ledger
      .phase("discover", () => this.#discover(signal))
      .catch(async (thrown: unknown) => {
        for (const { cache } of this.#caches) await recoverCache(cache, clock, signal);
        throw thrown;
      });
    using deadline = startDeadline("fetching", this.#settings.fetchMsMax, signal);
    await Promise.all(
      this.#caches.map((state, index) => this.#warmOne(state, found[index] ?? [], deadline.signal)),
    );
  }

  async #discover(signal: AbortSignal): Promise<Candidate[][]> {
    using deadline = startDeadline("asking the coordinator", this.#settings.discoverMsMax, signal);
    const found = await this.#parts.link.find(
      this.#caches.map(({ cache }) => cache.family),
      deadline.signal,
    );
    return found.map((sources) =>
      sources.flatMap(({ artifact, endpoints, complete }) =>
        endpoints.slice(0, 1).map((endpoint) => ({
          artifactId: artifact.artifactId,
          endpoint,
          totalBytes: artifact.totalBytes,
          isComplete: complete,
        })),
      ),
    );
  }

  async #warmOne(
    state: CacheState,
    candidates: readonly Candidate[],
    signal: AbortSignal,
  ): Promise<void> {
    const { fetcher, server, link, clock, random, log, narrator } = this.#parts;
    const { cache, record } = state;
    try {
      if (candidates.length === 0) {
        await recoverCache(cache, clock, signal);
        throw new RelightError(
          "no_source",
          `No ready source has "${cache.family.name}" for this identity`,
        );
      }
      await warmCache({
        cache,
        candidates,
        fetcher,
        relay: this.#settings.isPublishing
          ? createRelay({ server, announce: link.announce, log })
          : noRelay,
        ledger: this.#ledger,
        record,
        clock,
        random,
        onProgress: ({ family, done, total, bytes }) =>
          narrator.transfer({ family, piecesDone: done, piecesTotal: total, bytesDone: bytes }),
        signal,
      });
    } catch (thrown) {
      this.#ledger.cold(record, thrown);
      if (record.fetched > 0) record.state = "installed";
      log.debug("cold_start", {
        family: cache.family.name,
        code: record.code ?? "internal",
        message: record.reason ?? "",
      });
    }
  }

  /** While the engine runs: wait for health, publish, look again and again. Never fails. */
  async #serve(engine: Engine, start: { endMs: number | null }): Promise<void> {
    const stop = AbortSignal.any([engine.ended, engine.stopping]);
    try {
      const isHealthy = await this.#awaitHealth(stop);
      if (!isHealthy) return;
      start.endMs = this.#ledger.elapsedMs();
      this.#ledger.record.healthyMs = start.endMs;
      this.#parts.narrator.say(`engine healthy after ${formatMs(start.endMs)}`);
      this.#countHits();
      await this.#keepRecord();
      if (this.#settings.isPublishing) await this.#publishForever(stop);
    } catch (thrown) {
      if (stop.aborted) return;
      const { code, message } = asRelightError(thrown);
      this.#parts.log.error("failure", { code, message });
    }
  }

  async #awaitHealth(stop: AbortSignal): Promise<boolean> {
    const url = this.#settings.healthUrl ?? defaultHealthUrl(this.#framework, this.#command);
    if (url === null) {
      this.#parts.narrator.say(
        "nothing will be published: set --health-url so that Relight can tell when the engine is healthy",
      );
      return false;
    }
    using deadline = startDeadline("the engine's start", this.#settings.healthMsMax, stop);
    await waitUntilHealthy(url, this.#parts.clock, deadline.signal).catch((thrown: unknown) => {
      if (stop.aborted) throw thrown;
      throw new RelightError(
        "engine_unhealthy",
        `Engine did not answer 2xx at "${url}" within ${formatMs(this.#settings.healthMsMax)}`,
      );
    });
    return true;
  }

  async #publishForever(stop: AbortSignal): Promise<void> {
    const { clock, narrator, log } = this.#parts;
    const { deltaIntervalMs, settleMs } = this.#settings;
    const phase = this.#ledger.startPhase("publish");
    const firstUntilMs = clock.monotonicMs() + settleMsMax;
    let isFirst = true;
    while (!stop.aborted) {
      for (const { publisher } of this.#caches) await publisher.look(stop);
      const isSettling = this.#caches.some(({ publisher }) => publisher.isSettling);
      if (!(isFirst && isSettling && clock.monotonicMs() < firstUntilMs)) {
        for (const state of this.#caches)
          await this.#publishOne(state).catch((thrown: unknown) => {
            const { code, message } = asRelightError(thrown);
            log.warn("failure", { family: state.cache.family.name, code, message });
          });
        if (isFirst) {
          phase.endMs = this.#ledger.elapsedMs();
          if (this.#caches.every(({ record }) => record.published === null))
            narrator.say("nothing to publish: the caches are empty");
          await this.#keepRecord();
        }
        isFirst = false;
      }
      await clock.sleep(isFirst ? Math.max(settleMs / 2, 100) : deltaIntervalMs, stop);
    }
  }

  async #publishOne({ cache, record, publisher }: CacheState): Promise<void> {
    const publication = await publisher.publish();
    if (publication === null) return;
    const { artifactId, files, bytes, added } = publication;
    const isDelta = record.published !== null;
    record.published = { artifactId, files, bytes };
    this.#parts.narrator.say(
      isDelta
        ? `published ${cache.family.name}: ${count(added, "new file")}`
        : `published ${cache.family.name}: ${count(files, "file")}, ${formatBytes(bytes)}`,
    );
  }

  #countHits(): void {
    for (const { cache, record, before } of this.#caches) {
      const receipts = readReceipts(cache.root, (error) =>
        this.#parts.log.warn("failure", { code: error.code, message: error.message }),
      );
      record.hits = countHits({
        root: cache.root,
        family: cache.family,
        receipts,
        before,
        now: listCache(cache),
      });
    }
  }

  #sayOutcome(): void {
    const { narrator } = this.#parts;
    const { record } = this.#ledger;
    for (const cache of record.caches) {
      if (cache.state === "installed")
        narrator.say(
          `warm: ${cache.family}: ${count(cache.fetched, "file")}, ${formatBytes(cache.fetchedBytes)} from ${count(usedSources(cache), "source")}`,
        );
      else if (cache.state === "present")
        narrator.say(
          `warm: ${cache.family}: ${count(cache.alreadyThere, "file")} were here already`,
        );
      else if (cache.code !== null)
        narrator.say(`cold: ${cache.family}: ${cache.code}: ${cache.reason}`);
    }
    if (record.caches.length === 0 && record.code !== null)
      narrator.say(`cold: ${record.code}: ${record.reason}`);
  }

  /** The record on this node's disk and at the coordinator, as it is now. Failures cost only the record. */
  async #keepRecord(): Promise<void> {
    const { record } = this.#ledger;
    try {
      writeBoot(this.#settings.stateFolder, record);
      await this.#parts.link.report({
        bootId: record.bootId,
        nodeId: record.nodeId,
        model: record.model,
        startedAtMs: record.startedAtMs,
        readyMs: record.healthyMs,
        recordJson: Buffer.from(JSON.stringify({ ...record, outcome: outcomeOf(record) })),
      });
    } catch (thrown) {
      const { code, message } = asRelightError(thrown);
      this.#parts.log.warn("failure", { code, message });
    }
  }
}

function usedSources(cache: CacheRecord): number {
  return cache.sources.filter((source) => source.pieces > 0).length;
}

/** As Python's platform.machine() says it, so that a probe that failed changes nothing. */
function machine(): string {
  return process.arch === "x64" ? "x86_64" : process.arch === "arm64" ? "aarch64" : process.arch;
}
