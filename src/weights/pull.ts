// SPDX-License-Identifier: Apache-2.0
// Fills a target's tensors from live sources, one after the other until every tensor verified. What it
// decides is in pull-progress.ts. The target's memory is written in place; a pull that fails says so and
// leaves it half-written, so the engine must load from elsewhere into a clean state.

import { asRelightError, assert, RelightError } from "../errors.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import type { Clock } from "../platform/clock.ts";
import type { Carrier, TransportName } from "./carrier.ts";
import { coordinateKey } from "./coordinate.ts";
import { type Stay, stayOnDevice } from "./device.ts";
import { type Digester, placeCount } from "./digests.ts";
import { LeaseKeeper } from "./lease-keeper.ts";
import { contentId, digestSeed, type WeightLayout, type WeightManifest } from "./manifest.ts";
import { matchLayouts, type TensorPair } from "./match.ts";
import { Pacer } from "./pacer.ts";
import { planTransfer } from "./plan.ts";
import type { DeviceParts, EngineMemory } from "./publish.ts";
import {
  type PullEvent,
  type PullFailure,
  type PullProgress,
  type PullStep,
  startPull,
  step,
} from "./pull-progress.ts";
import { type Have, haveAll, type SourceLease, type WeightSource } from "./source.ts";
import { SourceQueue } from "./source-queue.ts";
import { type Judged, runTransfer } from "./transfer.ts";

export interface PullLimits {
  readonly batchBytes: number;
  readonly leaseMs: number;
  readonly bytesPerSecondMax: number;
  readonly bytesPerSecondMin: number;
  readonly silenceMsMax: number;
}

/** Whoever offers on what a pull has verified. */
export interface PullWatcher {
  /** These values are being assembled, from nothing. */
  began(manifest: WeightManifest): void;
  /** Tensors of the target that are as the manifest promises. */
  verified(tensors: readonly number[]): void;
}

export interface PullJob {
  readonly target: WeightLayout;
  readonly memory: EngineMemory;
  readonly sources: readonly WeightSource[];
  /** The `contentId` that is wanted, or `null` for whatever the first source has. */
  readonly content: string | null;
  readonly limits: PullLimits;
  /** Where this target can itself be read meanwhile; `null` when it cannot. */
  readonly address?: string | null;
  /** Opens a source that a busy one has named; `null` for an address that leads nowhere from here. */
  readonly openSource?: (address: string) => (WeightSource & Disposable) | null;
  readonly watcher?: PullWatcher;
}

export interface PullReport {
  readonly manifest: WeightManifest;
  readonly content: string;
  readonly bytes: number;
  /** Copying and verifying, all sources together. */
  readonly copyMs: number;
  /** From the first lease to the last digest: with what a source that is still loading makes wait for. */
  readonly readMs: number;
  readonly totalMs: number;
  readonly copyCount: number;
  /** GPU memory that this agent's context took meanwhile; `null` when it could not be read. */
  readonly costBytes: number | null;
  /** Sources that gave at least one verified tensor, in order. */
  readonly sources: readonly string[];
  /** How the bytes came, by `sources`. */
  readonly transports: readonly TransportName[];
  readonly failures: readonly PullFailure[];
}

/**
 * @throws sources_exhausted with `details.mutated`: whether any byte of the target may have changed.
 * @throws cancelled, and what only this side can be blamed for: device_memory, device_lost …
 */
export async function pullWeights(
  parts: DeviceParts & { readonly clock: Clock },
  job: PullJob,
  signal: AbortSignal,
): Promise<PullReport> {
  const began = parts.clock.monotonicMs();
  return await stayOnDevice(parts.driver, job.memory.deviceUuid, async (stay) => {
    const pull = new Pull(parts, job, stay);
    const done = await pull.run(signal);
    return { ...done, totalMs: parts.clock.monotonicMs() - began, costBytes: stay.costBytes };
  });
}

class Pull {
  readonly #parts: DeviceParts & { readonly clock: Clock };
  readonly #job: PullJob;
  readonly #stay: Stay;
  readonly #queue: SourceQueue;
  readonly #gave = new Map<string, TransportName>();
  #digester: Promise<Digester> | null = null;
  #progress: PullProgress;
  /** The content that the watcher was told of. */
  #watched: string | null = null;
  #isMutated = false;
  #isCopying = false;
  #bytes = 0;
  #copyMs = 0;
  #readSinceMs: number | null = null;
  #copyCount = 0;

  constructor(parts: DeviceParts & { readonly clock: Clock }, job: PullJob, stay: Stay) {
    this.#parts = parts;
    this.#job = job;
    this.#stay = stay;
    this.#progress = startPull(job.target.tensors.length, job.content);
    this.#queue = new SourceQueue(job.sources, job.openSource ?? null, job.address ?? null);
  }

  async run(signal: AbortSignal) {
    void this.#mapWhileIdle(this.#job.memory.handles);
    using queue = this.#queue;
    for (let source = queue.next(); source !== null; source = queue.next()) {
      const manifest = await this.#drain(source, signal);
      if (manifest !== null) return this.#report(manifest);
    }
    throw this.#exhausted();
  }

  /** Everything that this source has of what is missing; the manifest once nothing is missing. */
  async #drain(source: WeightSource, signal: AbortSignal): Promise<WeightManifest | null> {
    for (;;) {
      const next = await this.#once(source, signal);
      if (next === "again") continue;
      return next === "next" ? null : next;
    }
  }

  async #once(
    source: WeightSource,
    signal: AbortSignal,
  ): Promise<WeightManifest | "again" | "next"> {
    const read = new ReadTensors();
    try {
      const manifest = await this.#attempt(source, read, signal);
      if (manifest === null) return "next";
      this.#keep(source, read);
      const failure = read.wrong.length === 0 ? null : this.#wrongTensors(source, read.wrong);
      return this.#step({ type: "copied", failure }) === "done" ? manifest : "next";
    } catch (cause) {
      const error = asRelightError(cause);
      // Another source cannot help against what is wrong here.
      if (!mayTryElsewhere(error)) throw this.#mutatedOr(error);
      this.#keep(source, read);
      this.#queue.hear(error);
      const failure = { source: source.name, code: error.code, message: error.message };
      const type = error.code === "generation_changed" ? "generation_changed" : "failed";
      return this.#step({ type, failure }) === "again" ? "again" : "next";
    }
  }

  /** What verified before a source failed stays: nothing else has those digests. */
  #keep(source: WeightSource, { verified, transport }: ReadTensors): void {
    if (verified.length === 0 || transport === null) return;
    this.#step({ type: "verified", tensors: verified });
    this.#gave.set(source.name, transport);
  }

  #step(event: PullEvent): PullStep {
    const [progress, then] = step(this.#progress, event);
    this.#progress = progress;
    return then;
  }

  /** Reads what the source has of what is missing. `null`: it offers what is not wanted. */
  async #attempt(
    source: WeightSource,
    read: ReadTensors,
    signal: AbortSignal,
  ): Promise<WeightManifest | null> {
    const { target, limits, address, watcher } = this.#job;
    const { clock } = this.#parts;
    const key = coordinateKey(target.coordinate);
    const manifest = await source.offer(key, signal);
    const pairs = matchLayouts(manifest, target);
    const content = contentId(manifest);
    if (this.#step({ type: "offered", source: source.name, content }) !== "copy") return null;
    const want = {
      generation: manifest.generation,
      ttlMs: limits.leaseMs,
      address: address ?? null,
    };
    await using lease = await source.claim(key, want, signal);
    this.#readSinceMs ??= clock.monotonicMs();
    const keeper = new LeaseKeeper(lease, { clock, leaseMs: limits.leaseMs, signal });
    if (this.#watched !== content) watcher?.began(manifest);
    this.#watched = content;
    const { driver } = this.#parts;
    await using carrier = await lease.open({ driver, stay: this.#stay }, keeper.signal);
    read.transport = carrier.transport;
    const missing = pairs.filter((pair) => !this.#progress.verified.has(pair.target));
    const rate = () => Math.min(limits.bytesPerSecondMax, keeper.bytesPerSecondMax);
    const pacer = new Pacer(clock, rate);
    const admit = (bytes: number, within: AbortSignal) => {
      keeper.touch();
      return pacer.pass(bytes, within);
    };
    const reading = { manifest, lease, carrier, admit, read, signal: keeper.signal };
    await this.#readAll(missing, reading);
    if (!(await isStillCurrent(lease, limits.leaseMs, signal))) {
      throw new RelightError(
        "generation_changed",
        `Cannot keep what "${source.name}" gave: it changed its weights meanwhile`,
      );
    }
    return manifest;
  }

  /** A source that is still loading gives what it has, and then what it gets. */
  async #readAll(missing: readonly TensorPair[], reading: Reading): Promise<void> {
    const { lease, read, signal } = reading;
    let left = missing;
    let have = lease.isComplete ? haveAll : await lease.have(-1, signal);
    for (;;) {
      const ready = have.isComplete ? left : left.filter((pair) => have.includes(pair.source));
      if (ready.length > 0 || left.length === 0) await this.#transfer(ready, reading);
      left = have.isComplete ? [] : left.filter((pair) => !have.includes(pair.source));
      if (left.length === 0 || read.wrong.length > 0) return;
      have = await this.#haveMore(reading, have.count);
    }
  }

  async #haveMore({ lease, signal }: Reading, known: number): Promise<Have> {
    const { clock } = this.#parts;
    const until = clock.monotonicMs() + this.#job.limits.silenceMsMax;
    for (;;) {
      const have = await lease.have(known, signal);
      if (have.isComplete || have.count > known) return have;
      if (clock.monotonicMs() < until) continue;
      throw new RelightError(
        "source_stalled",
        `Cannot wait for more of a source that is loading: it has ${known} tensors and gets no more`,
      );
    }
  }

  /** One after the other, so that the first copy never stands behind more than one of them. */
  async #mapWhileIdle(handles: readonly MemoryHandle[]): Promise<void> {
    for (let index = 0; index < handles.length && !this.#isCopying; index += 1) {
      // Who needs the address gets the error.
      await this.#stay.addressOf(handles, index).catch(() => undefined);
    }
  }

  async #transfer(pairs: readonly TensorPair[], reading: Reading): Promise<void> {
    const { target, memory, limits, watcher } = this.#job;
    const { driver, clock } = this.#parts;
    const { manifest, carrier, admit, read } = reading;
    const plan = planTransfer(pairs, manifest, target, limits);
    const wanted = new Map(pairs.map((pair) => [pair.target, digestOf(manifest, pair.source)]));
    this.#digester ??= this.#parts.openDigester(
      this.#stay,
      Math.max(1, placeCount(target.tensors)),
    );
    const digester = await this.#digester;
    this.#isCopying = true;
    this.#isMutated ||= plan.bytes > 0;
    const addressOf = (allocation: number) => this.#stay.addressOf(memory.handles, allocation);
    const onJudged = ({ verified, wrong }: Judged) => {
      read.add({ verified, wrong });
      if (verified.length > 0) watcher?.verified(verified);
    };
    const began = clock.monotonicMs();
    try {
      await runTransfer(
        { driver, stay: this.#stay, digester, carrier, addressOf },
        { ...limits, plan, target, wanted, seed: digestSeed(target), admit, onJudged },
        reading.signal,
      );
      this.#bytes += plan.bytes;
    } finally {
      this.#copyMs += clock.monotonicMs() - began;
      this.#copyCount += plan.copyCount;
    }
  }

  #wrongTensors(source: WeightSource, wrong: readonly number[]): PullFailure {
    const first = this.#job.target.tensors[wrong[0] ?? 0]?.name;
    const message =
      `Cannot accept ${wrong.length} tensors from "${source.name}", "${first}" first: ` +
      "their digests are not those of its manifest";
    return { source: source.name, code: "digest_mismatch", message };
  }

  #report(manifest: WeightManifest) {
    return {
      manifest,
      content: contentId(manifest),
      bytes: this.#bytes,
      copyMs: this.#copyMs,
      readMs: this.#parts.clock.monotonicMs() - (this.#readSinceMs ?? 0),
      copyCount: this.#copyCount,
      sources: [...this.#gave.keys()],
      transports: [...this.#gave.values()],
      failures: this.#progress.failures,
    };
  }

  #exhausted(): RelightError {
    const { failures, verified, tensorCount } = this.#progress;
    const last = failures.at(-1);
    const reason = last === undefined ? "there is no source" : `last: ${last.message}`;
    return new RelightError(
      failures.length === 0 ? "no_source" : "sources_exhausted",
      `Cannot load weights from a live replica: ${verified.size} of ${tensorCount} tensors ` +
        `verified, ${failures.length} failures, ${reason}`,
      {
        details: {
          mutated: this.#isMutated,
          failures: failures.length,
          busy: failures.some(({ code }) => code === "source_busy"),
        },
      },
    );
  }

  #mutatedOr(error: RelightError): RelightError {
    const details = { ...error.details, mutated: this.#isMutated };
    return new RelightError(error.code, error.message, { details, cause: error });
  }
}

/** What came of one attempt at one source, kept also when the attempt fails. */
class ReadTensors {
  transport: TransportName | null = null;
  readonly verified: number[] = [];
  readonly wrong: number[] = [];

  add({ verified, wrong }: Judged): void {
    this.verified.push(...verified);
    this.wrong.push(...wrong);
  }
}

interface Reading {
  readonly manifest: WeightManifest;
  readonly lease: SourceLease;
  readonly carrier: Carrier;
  readonly admit: (bytes: number, signal: AbortSignal) => Promise<void>;
  readonly read: ReadTensors;
  readonly signal: AbortSignal;
}

/**
 * A source that has died meanwhile cannot say that it has changed; what verified against its manifest is
 * that generation's, whole, because nothing else has those digests.
 */
async function isStillCurrent(
  lease: SourceLease,
  ttlMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  try {
    await lease.renew(ttlMs, signal);
    return true;
  } catch (cause) {
    const { code } = asRelightError(cause);
    if (code === "generation_changed") return false;
    if (goneCodes.has(code)) return true;
    throw cause;
  }
}

const goneCodes: ReadonlySet<string> = new Set([
  "source_unreachable",
  "source_stalled",
  "source_gone",
  "no_source",
]);

function mayTryElsewhere(error: RelightError): boolean {
  // A transfer's own deadline follows its bytes: it is this source's link that was too slow.
  if (error.code === "deadline_exceeded") return true;
  return error.facts.retry === "elsewhere" || error.facts.blame === "remote";
}

function digestOf(manifest: WeightManifest, index: number): string {
  const digest = manifest.digests[index];
  assert(digest !== undefined, "a pair names a tensor of the manifest");
  // A tensor without bytes is never compared.
  return digest ?? "";
}
