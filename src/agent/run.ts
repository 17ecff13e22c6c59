// SPDX-License-Identifier: Apache-2.0
// The life of one replica under `relight run`: install what peers have, start the engine, publish what
// it compiled once it is healthy, keep publishing, withdraw at the end. Whatever fails before the start
// is a cold start with a code; the engine starts within the budget regardless.

import type { Environment } from "../artifacts/family.ts";
import { frameworkOf } from "../artifacts/identity.ts";
import { formatMs } from "../core/units.ts";
import { asRelightError, type Code, RelightError } from "../errors.ts";
import { startDeadline } from "../platform/deadline.ts";
import { writeBoot } from "./boot-store.ts";
import {
  defaultHealthUrl,
  type Engine,
  startEngine,
  waitUntilHealthy,
  withoutSecrets,
} from "./engine.ts";
import { Ledger, outcomeOf } from "./ledger.ts";
import type { BootEvent } from "./narrator.ts";
import { type StartedProbe, startProbe } from "./probe.ts";
import { type CacheParts, type CacheSettings, ReplicaCaches } from "./replica-caches.ts";
import {
  type OpenReplicaWeights,
  openReplicaWeights,
  type WeightHoldings,
} from "./replica-weights.ts";

export interface RunSettings extends CacheSettings {
  readonly nodeId: string;
  readonly stateFolder: string;
  readonly healthUrl: string | null;
  readonly isInstalling: boolean;
  readonly healthMsMax: number;
}

export type RunParts = CacheParts & WeightHoldings;

interface RunOptions {
  readonly settings: RunSettings;
  readonly parts: RunParts;
  /** The engine's Python, asked already (`probeEngine`). */
  readonly probe?: StartedProbe;
}

/** Asks the engine's Python at once: opening an agent takes about as long as its answer. */
export function probeEngine(
  command: readonly string[],
  env: Environment,
  { python, discoverMsMax }: RunSettings,
): StartedProbe {
  const framework = frameworkOf(command);
  return startProbe({ command, python, framework, env: withoutSecrets(env) }, discoverMsMax);
}

/** @returns the engine's exit code. @throws RelightError `engine_start_failed`, `config_invalid`. */
export async function runReplica(
  command: readonly string[],
  env: Environment,
  options: RunOptions,
): Promise<number> {
  return new Run(command, env, options).run();
}

class Run {
  readonly #command: readonly string[];
  readonly #env: Environment;
  readonly #settings: RunSettings;
  readonly #parts: RunParts;
  readonly #ledger: Ledger;
  readonly #caches: ReplicaCaches;
  /** Why the record could not be kept the last time. */
  #recordFailure: Code | null = null;
  #kept: Promise<void> = Promise.resolve();
  #isPrepared = false;

  constructor(command: readonly string[], env: Environment, options: RunOptions) {
    const { settings, parts, probe } = options;
    this.#command = command;
    this.#env = withoutSecrets(env);
    this.#settings = settings;
    this.#parts = parts;
    this.#ledger = new Ledger({
      clock: parts.clock,
      nodeId: settings.nodeId,
      model: settings.facts.model ?? "",
      program: command[0]?.split("/").at(-1) ?? "",
      trust: parts.trust.summary,
    });
    this.#caches = new ReplicaCaches(
      { command, env: this.#env },
      { settings, parts, ledger: this.#ledger, probe },
    );
  }

  async run(): Promise<number> {
    const { record } = this.#ledger;
    const over = new AbortController();
    const prepared = this.#caches.prepare(this.#settings.isInstalling, over.signal);
    prepared.then(
      () => {
        this.#isPrepared = true;
      },
      () => undefined, // Told below, once somebody waits for it.
    );
    await using weights = this.#openWeights(prepared);
    // With weights the engine starts at once and its caches arrive meanwhile: it is held in its load.
    await (weights === null ? prepared : Promise.race([this.#caches.checked, prepared]));
    const start = this.#ledger.startPhase("engine");
    const env = weights === null ? this.#env : { ...this.#env, ...weights.environment };
    using engine = await startEngine(this.#command, env);
    record.engineStartedMs = this.#ledger.elapsedMs();
    // Asked to stop, the engine drains for a while; nobody should be sent here any more.
    engine.stopping.addEventListener("abort", () => void this.#parts.link.withdraw(), {
      once: true,
    });
    const background = this.#serve(engine, { start, prepared });
    record.exitCode = await engine.exited;
    over.abort(new RelightError("cancelled", "The engine has ended"));
    start.endMs ??= this.#ledger.elapsedMs();
    await background;
    this.#tell("ended");
    await this.#keepRecord();
    return record.exitCode;
  }

  #tell(event: BootEvent): void {
    this.#parts.narrator.boot(event, this.#ledger.record);
  }

  /** Null where none are handed over, or where the socket cannot be opened: then weights are cold. */
  #openWeights(prepared: Promise<void>): OpenReplicaWeights | null {
    const { weights } = this.#parts;
    if (weights === null) return null;
    try {
      return openReplicaWeights(
        { ...this.#parts, weights },
        {
          ledger: this.#ledger,
          settings: this.#settings,
          whenWarm: () => prepared.catch(() => undefined), // Told by whoever awaits it in run().
          onChange: () => void this.#keepRecord(),
        },
      );
    } catch (thrown) {
      const phase = this.#ledger.startPhase("weights");
      phase.endMs = phase.startMs;
      const { code, message } = asRelightError(thrown);
      [phase.code, phase.detail] = [code, message];
      this.#parts.narrator.say(`cold: weights: ${code}: ${message}`);
      return null;
    }
  }

  /** While the engine runs: wait for health, publish, look again and again. Never fails. */
  async #serve(
    engine: Engine,
    { start, prepared }: { start: { endMs: number | null }; prepared: Promise<void> },
  ): Promise<void> {
    const stop = AbortSignal.any([engine.ended, engine.stopping]);
    try {
      await this.#keepRecord();
      if (!(await this.#awaitHealth(stop))) return;
      start.endMs = this.#ledger.elapsedMs();
      this.#ledger.record.healthyMs = start.endMs;
      this.#parts.narrator.say(`engine healthy after ${formatMs(start.endMs)}`);
      await prepared;
      this.#caches.countHits();
      this.#tell("healthy");
      await this.#keepRecord();
      if (this.#settings.isPublishing)
        await this.#caches.publishUntil(stop, () => this.#keepRecord());
    } catch (thrown) {
      if (stop.aborted) return;
      const { code, message } = asRelightError(thrown);
      this.#parts.log.error("failure", { code, message });
    }
  }

  async #awaitHealth(stop: AbortSignal): Promise<boolean> {
    const { healthUrl, healthMsMax } = this.#settings;
    const url = healthUrl ?? defaultHealthUrl(frameworkOf(this.#command), this.#command);
    if (url === null) {
      this.#parts.narrator.say(
        "nothing will be published: set --health-url so that Relight can tell when the engine is healthy",
      );
      return false;
    }
    using deadline = startDeadline("the engine's start", healthMsMax, stop);
    await waitUntilHealthy(url, this.#parts.clock, deadline.signal).catch((thrown: unknown) => {
      if (stop.aborted) throw thrown;
      throw new RelightError(
        "engine_unhealthy",
        `Engine did not answer 2xx at "${url}" within ${formatMs(healthMsMax)}`,
      );
    });
    return true;
  }

  /** The record on this node's disk and at the coordinator, as it is now. Failures cost only the record. */
  #keepRecord(): Promise<void> {
    // One after the other: the coordinator keeps what arrives last.
    this.#kept = this.#kept.then(() => this.#keepRecordNow());
    return this.#kept;
  }

  /** Null while caches or weights may still arrive: a boot is counted with the first outcome it has. */
  #outcome(): ReturnType<typeof outcomeOf> | null {
    const { record } = this.#ledger;
    const isLoading = record.weights.some(({ state }) => state === "loading");
    const isOver = record.exitCode !== null;
    const mayLoad = this.#parts.weights !== null && record.healthyMs === null;
    return isOver || (this.#isPrepared && !isLoading && !mayLoad) ? outcomeOf(record) : null;
  }

  async #keepRecordNow(): Promise<void> {
    const { record } = this.#ledger;
    try {
      writeBoot(this.#settings.stateFolder, record);
      await this.#parts.link.report({
        bootId: record.bootId,
        nodeId: record.nodeId,
        model: record.model,
        startedAtMs: record.startedAtMs,
        readyMs: record.healthyMs,
        recordJson: Buffer.from(JSON.stringify({ ...record, outcome: this.#outcome() })),
      });
    } catch (thrown) {
      const { code, message } = asRelightError(thrown);
      // Each look writes it again: once is enough to know.
      if (code !== this.#recordFailure) this.#parts.log.warn("failure", { code, message });
      this.#recordFailure = code;
    }
  }
}
