// SPDX-License-Identifier: Apache-2.0
// The caches of one replica, from nothing known to published: who the replica is, which caches it has,
// what peers have of them, and afterwards what it can give. Used by `relight run` around an engine and
// by `relight agent` and `relight artifact` without one.

import { type Cache, chooseCaches } from "../artifacts/families.ts";
import type { Environment, Facts, Family } from "../artifacts/family.ts";
import { countHits, unitsOf } from "../artifacts/hits.ts";
import {
  compileConfigDigest,
  factsOfCommand,
  frameworkOf,
  identityOf,
  mergeFacts,
} from "../artifacts/identity.ts";
import { flashinferJit } from "../artifacts/kinds/flashinfer.ts";
import { readReceipts } from "../artifacts/receipt.ts";
import { listCache } from "../artifacts/seal.ts";
import type { Sealer } from "../artifacts/sealer.ts";
import type { Hex32 } from "../core/digest.ts";
import { count, formatBytes } from "../core/units.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import type { Clock } from "../platform/clock.ts";
import { type Deadline, startDeadlineOn } from "../platform/deadline.ts";
import type { PieceFetcher, PieceServer } from "../transport/transport.ts";
import { type Candidate, candidatesOf } from "./candidates.ts";
import type { ClaimCache, ClaimedCache, Undone } from "./claimed-cache.ts";
import type { CacheRecord, Ledger } from "./ledger.ts";
import type { Narrator } from "./narrator.ts";
import type { NodeLink } from "./node-link.ts";
import { type StartedProbe, startProbe } from "./probe.ts";
import { Publisher } from "./publisher.ts";
import { createRelay, noRelay } from "./relay.ts";
import { relayAgain } from "./relay-again.ts";
import { type ArtifactTrust, type Subject, subjectOf } from "./trust.ts";
import { warmCache } from "./warm.ts";

/** Beyond this a first publication goes out without what still settles; the delta brings it. */
const settleMsMax = 15_000;
/** First wait before a store that did not answer is asked again; each is twice the one before. */
const retryMsMin = 100;
/** For taking back what may no longer be used, also when the budget is zero; it takes milliseconds. */
const recheckMsMax = 5_000;

/** For finding out why no source fits. */
const compareMsMax = 500;

export interface CacheSettings {
  /** Facts that the user gave; empty ones are unknown. */
  readonly facts: Partial<Record<keyof Facts, string>>;
  readonly extraIdentity: Readonly<Record<string, string>>;
  readonly families: readonly string[];
  /** Those that no table knows: given by hand, or a checkpoint. */
  readonly customCaches: readonly Family[];
  readonly python: string;
  readonly isPublishing: boolean;
  /** From the start until the caches are as warm as they get. */
  readonly budgetMs: number;
  readonly discoverMsMax: number;
  readonly fetchMsMax: number;
  readonly settleMs: number;
  readonly deltaIntervalMs: number;
}

export interface CacheParts {
  readonly link: NodeLink;
  readonly server: PieceServer;
  readonly fetcher: PieceFetcher;
  readonly sealer: Sealer;
  readonly claim: ClaimCache;
  readonly trust: ArtifactTrust;
  readonly clock: Clock;
  readonly random: () => number;
  readonly log: Log;
  readonly narrator: Narrator;
}

interface CacheState {
  readonly cache: Cache;
  readonly record: CacheRecord;
  readonly subject: Subject;
  readonly publisher: Publisher;
  /** Units in the cache before the engine ran. */
  before: ReadonlySet<string>;
  /** Why the folder could not be looked at; null when it could. */
  obstacle: unknown;
  /** Why it could not be sealed the last time, so that the same is not said at every look. */
  complaint: string;
}

export class ReplicaCaches {
  readonly #command: readonly string[];
  readonly #env: Environment;
  readonly #settings: CacheSettings;
  readonly #parts: CacheParts;
  readonly #ledger: Ledger;
  readonly #probe: StartedProbe | null;
  readonly #checked = Promise.withResolvers<void>();
  #states: CacheState[] = [];
  /** Under which what is offered was last looked at. */
  #policyVersion: number | null;

  /**
   * @param engine its command, empty when there is none, and its environment
   * @param options `probe` when its Python has been asked already
   */
  constructor(
    engine: { command: readonly string[]; env: Environment },
    options: {
      settings: CacheSettings;
      parts: CacheParts;
      ledger: Ledger;
      probe?: StartedProbe | undefined;
    },
  ) {
    this.#probe = options.probe ?? null;
    this.#command = engine.command;
    this.#env = engine.env;
    this.#settings = options.settings;
    this.#parts = options.parts;
    this.#policyVersion = options.parts.trust.summary.policyVersion;
    this.#ledger = options.ledger;
  }

  /** Resolves once what lies here may be used by an engine, though more may still arrive. */
  get checked(): Promise<void> {
    return this.#checked.promise;
  }

  /**
   * Learns who the replica is and, with `isInstalling`, installs what peers have, all within the
   * budget. What goes wrong is in the ledger, not thrown; so is that `stop` fired.
   * @throws RelightError `config_invalid`.
   */
  async prepare(isInstalling: boolean, stop: AbortSignal): Promise<void> {
    const ledger = this.#ledger;
    using budget = startDeadlineOn(this.#parts.clock, {
      what: "warming the caches",
      ms: this.#settings.budgetMs,
      parent: stop,
    });
    try {
      const facts = await ledger.phase("identify", () => this.#identify(budget.signal));
      this.#choose(facts);
      await this.#recheckAll();
      this.#checked.resolve();
      if (isInstalling) await this.#warmAll(budget.signal);
    } catch (thrown) {
      if (thrown instanceof RelightError && thrown.code === "config_invalid") throw thrown;
      ledger.cold(ledger.record, thrown);
      for (const { record } of this.#states)
        if (record.state === "cold") ledger.cold(record, thrown);
      this.#checked.resolve();
    }
    if (isInstalling) this.#sayOutcome();
  }

  /** Publishes now and again whatever is new, until `stop`. One failing cache does not hold up another. */
  async publishUntil(stop: AbortSignal, onFirst: () => Promise<void>): Promise<void> {
    const { clock, narrator } = this.#parts;
    const { deltaIntervalMs, settleMs } = this.#settings;
    const phase = this.#ledger.startPhase("publish");
    const firstUntilMs = clock.monotonicMs() + settleMsMax;
    let isFirst = true;
    await this.#relayAgain(stop);
    while (!stop.aborted) {
      await this.#followPolicy(stop);
      for (const state of this.#states) await this.#look(state, stop);
      const isSettling = this.#states.some(({ publisher }) => publisher.isSettling);
      if (!isFirst || !isSettling || clock.monotonicMs() >= firstUntilMs) {
        for (const state of this.#states) await this.#publish(state);
        if (isFirst) {
          phase.endMs = this.#ledger.elapsedMs();
          if (this.#states.every(({ record }) => record.published === null))
            narrator.say("nothing to publish: the caches are empty");
          await onFirst();
        }
        isFirst = false;
      }
      await clock.sleep(isFirst ? Math.max(settleMs / 2, 100) : deltaIntervalMs, stop);
    }
  }

  /** What an earlier start installed; what this one installed is offered since. */
  async #relayAgain(stop: AbortSignal): Promise<void> {
    const { server, link, trust, log } = this.#parts;
    const relay = createRelay({ server, announce: link.announce, retract: link.retract, log });
    const onFailure = (error: unknown) => this.#warn(error);
    for (const state of this.#states.filter(({ record }) => record.fetched === 0)) {
      using deadline = this.#phaseDeadline("offering installations", recheckMsMax, stop);
      try {
        using claimed = await this.#claim(state, deadline.signal);
        await relayAgain(state.cache, { claimed, trust, relay, onFailure });
      } catch (thrown) {
        stop.throwIfAborted();
        this.#warn(thrown);
      }
    }
  }

  /** A newer policy counts at once for what is offered; the engine has loaded its code already. */
  async #followPolicy(stop: AbortSignal): Promise<void> {
    const { trust, server, link } = this.#parts;
    await trust.refresh(stop);
    const { policyVersion } = trust.summary;
    if (policyVersion === this.#policyVersion) return;
    this.#policyVersion = policyVersion;
    for (const { cache, publisher } of this.#states) {
      const receipts = readReceipts(cache.root, (error) => this.#warn(error));
      const refused = receipts.filter((receipt) => trust.recheck(receipt) !== null);
      for (const { artifactId } of refused) {
        link.retract({ family: cache.family, artifactId });
        await server.withdraw(artifactId as Hex32);
      }
      const paths = refused.flatMap(({ files }) => files.map((file) => file.path));
      if (paths.length > 0 || !publisher.isAllowed()) await publisher.withdraw(paths);
    }
  }

  /** What became of the installed files, into the ledger. */
  countHits(): void {
    for (const { cache, record, before } of this.#states) {
      const receipts = readReceipts(cache.root, (error) => this.#warn(error));
      record.hits = countHits({
        root: cache.root,
        family: cache.family,
        receipts,
        before,
        now: listCache(cache),
      });
    }
  }

  async #identify(signal: AbortSignal): Promise<Facts> {
    const { facts, python, discoverMsMax } = this.#settings;
    using deadline = this.#phaseDeadline("the probe", discoverMsMax, signal);
    const framework = frameworkOf(this.#command);
    const own = {
      framework,
      compile_config: compileConfigDigest(this.#command, this.#env),
      machine: machine(),
      flashinfer_root: flashinferJit.root(this.#env) ?? "",
      ...factsOfCommand(this.#command),
    };
    if (this.#command.length === 0 && python === "") return mergeFacts(own, facts);
    try {
      const of = { command: this.#command, python, framework, env: this.#env };
      const probe = this.#probe ?? startProbe(of, discoverMsMax);
      const probed = await probe(deadline.signal);
      return mergeFacts(own, probed.facts, facts);
    } catch (thrown) {
      // What it would have told is unknown, and the record says which facts that leaves open.
      const { code, message } = asRelightError(thrown);
      this.#parts.log.debug("failure", { code, message });
      return mergeFacts(own, facts);
    }
  }

  #choose(facts: Facts): void {
    const { families, customCaches, extraIdentity, settleMs } = this.#settings;
    const { link, sealer, server, trust, clock, narrator } = this.#parts;
    const { announce, retract } = link;
    this.#ledger.record.model ||= facts.model;
    link.identify(facts, extraIdentity);
    link.start();
    const caches = chooseCaches({ env: this.#env, facts, named: families, custom: customCaches });
    if (caches.length === 0)
      narrator.say("no cache to exchange: name one with --cache NAME=DIR or --families");
    const unknown = caches.flatMap(({ family }) => identityOf(family, facts, {}).unknown);
    this.#ledger.record.unknownFacts = [...new Set(unknown)];
    this.#states = caches.map((cache) => {
      const subject = subjectOf(cache.family, facts, extraIdentity);
      const options = { sealer, server, announce, retract, trust, subject, clock, settleMs };
      return {
        cache,
        record: this.#ledger.cache(cache.family.name, cache.root),
        subject,
        publisher: new Publisher(cache, options),
        before: new Set(),
        obstacle: null,
        complaint: "",
      };
    });
  }

  /**
   * Whether what was installed earlier may still be used, and what an earlier crash left behind. Before
   * anybody is asked for more, and whether or not anybody is: the engine runs what lies there.
   */
  async #recheckAll(): Promise<void> {
    const { clock } = this.#parts;
    using deadline = startDeadlineOn(clock, { what: "looking at receipts", ms: recheckMsMax });
    for (const state of this.#states) {
      try {
        using _claimed = await this.#claim(state, deadline.signal);
      } catch (thrown) {
        state.obstacle = thrown;
        this.#ledger.cold(state.record, thrown);
      }
      this.#lookBefore(state);
    }
  }

  #claim({ cache, record }: CacheState, signal: AbortSignal): Promise<ClaimedCache> {
    const { claim, clock, trust, log, narrator } = this.#parts;
    const onUndone = ({ receipt, refusal, files }: Undone) => {
      const { code, reason } = refusal;
      const { artifactId, family } = receipt;
      record.undone.push({ artifactId, files, code });
      log.warn("installation_undone", { family, artifactId, files, code, message: reason });
      narrator.say(`taken back: ${family}: ${count(files, "file")}: ${code}: ${reason}`);
    };
    return claim(cache, { clock, signal, recheck: (receipt) => trust.recheck(receipt), onUndone });
  }

  #lookBefore(state: CacheState): void {
    try {
      state.before = unitsOf(state.cache.family, listCache(state.cache));
    } catch (thrown) {
      this.#ledger.cold(state.record, thrown);
    }
  }

  async #warmAll(signal: AbortSignal): Promise<void> {
    if (this.#states.length === 0) return;
    const found = await this.#ledger.phase("discover", () => this.#discover(signal));
    using deadline = this.#phaseDeadline("fetching", this.#settings.fetchMsMax, signal);
    await Promise.all(
      this.#states.map((state, index) => this.#warmOne(state, found[index] ?? [], deadline.signal)),
    );
  }

  async #discover(signal: AbortSignal): Promise<Candidate[][]> {
    const { discoverMsMax } = this.#settings;
    using deadline = this.#phaseDeadline("asking the coordinator", discoverMsMax, signal);
    const families = this.#states.map(({ cache }) => cache.family);
    const { link, clock, random } = this.#parts;
    for (let waitMs = retryMsMin; ; waitMs *= 2) {
      try {
        return (await link.find(families, deadline.signal)).map(candidatesOf);
      } catch (thrown) {
        // A store that hiccups is asked again; a coordinator that is away is not waited for.
        if (asRelightError(thrown).code !== "store_unavailable") throw thrown;
        await clock.sleep(waitMs * (0.5 + random()), deadline.signal).catch(() => {
          throw thrown;
        });
      }
    }
  }

  #phaseDeadline(what: string, ms: number, parent: AbortSignal): Deadline {
    return startDeadlineOn(this.#parts.clock, { what, ms, parent });
  }

  /** With what keeps the nearest source apart, if that can be had soon: this start is cold in any case. */
  async #noSource({ family }: Cache, signal: AbortSignal): Promise<RelightError> {
    const message = `No ready source has "${family.name}" for this identity`;
    try {
      using deadline = this.#phaseDeadline("comparing identities", compareMsMax, signal);
      const nearest = await this.#parts.link.nearest(family, deadline.signal);
      const others = nearest === null ? "" : `; the nearest differs in ${nearest}`;
      return new RelightError("no_source", message + others);
    } catch {
      // The coordinator has answered that there is none; more was only asked to say why.
      return new RelightError("no_source", message);
    }
  }

  async #warmOne(
    state: CacheState,
    candidates: readonly Candidate[],
    signal: AbortSignal,
  ): Promise<void> {
    const { fetcher, server, link, trust, clock, random, log, narrator } = this.#parts;
    const { cache, record, subject } = state;
    try {
      if (candidates.length === 0) {
        throw state.obstacle ?? (await this.#noSource(cache, signal));
      }
      [record.code, record.reason] = [null, null];
      await warmCache({
        cache,
        candidates,
        search: async (stop) => candidatesOf((await link.find([cache.family], stop))[0] ?? []),
        claim: (stop) => this.#claim(state, stop),
        trust,
        subject,
        fetcher,
        relay: this.#settings.isPublishing
          ? createRelay({ server, announce: link.announce, retract: link.retract, log })
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

  async #look(state: CacheState, stop: AbortSignal): Promise<void> {
    try {
      await state.publisher.look(stop);
      state.complaint = "";
    } catch (thrown) {
      stop.throwIfAborted();
      const { message } = asRelightError(thrown);
      if (message !== state.complaint) this.#warn(thrown);
      state.complaint = message;
    }
  }

  async #publish({ cache, record, publisher }: CacheState): Promise<void> {
    try {
      const publication = await publisher.publish();
      if (publication === null) return;
      const { artifactId, files, bytes, added } = publication;
      const isDelta = record.published !== null;
      record.published = { artifactId, files, bytes };
      const what = isDelta
        ? count(added, "new file")
        : `${count(files, "file")}, ${formatBytes(bytes)}`;
      this.#parts.narrator.say(`published ${cache.family.name}: ${what}`);
    } catch (thrown) {
      this.#warn(thrown);
    }
  }

  #sayOutcome(): void {
    const { record } = this.#ledger;
    const { narrator } = this.#parts;
    if (record.trust?.mode === "insecure")
      narrator.say("trust is switched off: what peers offer is installed unsigned");
    for (const cache of record.caches) narrator.say(outcomeText(cache));
    if (record.caches.length === 0 && record.code !== null)
      narrator.say(`cold: ${record.code}: ${record.reason}`);
  }

  #warn(thrown: unknown): void {
    const { code, message } = asRelightError(thrown);
    this.#parts.log.warn("failure", { code, message });
  }
}

function outcomeText(cache: CacheRecord): string {
  const { family, state, fetched, fetchedBytes, alreadyThere, code, reason, sources } = cache;
  const used = sources.filter((source) => source.pieces > 0).length;
  if (state === "installed")
    return `warm: ${family}: ${count(fetched, "file")}, ${formatBytes(fetchedBytes)} from ${count(used, "source")}`;
  if (state === "present")
    return `warm: ${family}: ${count(alreadyThere, "file")} were here already`;
  return `cold: ${family}: ${code}: ${reason}`;
}

/** As Python's platform.machine() says it, so that a probe that failed changes nothing. */
function machine(): string {
  return process.arch === "x64" ? "x86_64" : process.arch === "arm64" ? "aarch64" : process.arch;
}
