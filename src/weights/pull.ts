// SPDX-License-Identifier: Apache-2.0
// Fills a target's tensors from live sources, one after the other until every tensor verified. What it
// decides is in pull-progress.ts. The target's memory is written in place; a pull that fails says so and
// leaves it half-written, so the engine must load from elsewhere into a clean state.

import { asRelightError, assert, RelightError } from "../errors.ts";
import type { GpuDriver, MemoryHandle } from "../gpu/driver.ts";
import type { Clock } from "../platform/clock.ts";
import { coordinateKey } from "./coordinate.ts";
import { type Stay, stayOnDevice } from "./device.ts";
import { placeCount } from "./digests.ts";
import { contentId, digestSeed, type WeightLayout, type WeightManifest } from "./manifest.ts";
import { matchLayouts } from "./match.ts";
import { planTransfer } from "./plan.ts";
import type { DeviceParts, EngineMemory } from "./publish.ts";
import { type PullFailure, type PullProgress, startPull, step } from "./pull-progress.ts";
import type { WeightSource } from "./source.ts";
import { runTransfer, type TransferResult } from "./transfer.ts";

export interface PullLimits {
  readonly batchBytes: number;
  readonly leaseMs: number;
  readonly bytesPerSecondMax: number;
  readonly bytesPerSecondMin: number;
  readonly silenceMsMax: number;
}

export interface PullJob {
  readonly target: WeightLayout;
  readonly memory: EngineMemory;
  readonly sources: readonly WeightSource[];
  /** The `contentId` that is wanted, or `null` for whatever the first source has. */
  readonly content: string | null;
  readonly limits: PullLimits;
}

export interface PullReport {
  readonly manifest: WeightManifest;
  readonly content: string;
  readonly bytes: number;
  /** Copying and verifying, all sources together. */
  readonly copyMs: number;
  readonly totalMs: number;
  readonly copyCount: number;
  /** GPU memory that this agent's context took meanwhile; `null` when it could not be read. */
  readonly costBytes: number | null;
  /** Sources that gave at least one verified tensor, in order. */
  readonly sources: readonly string[];
  readonly failures: readonly PullFailure[];
}

/** The rest is mapped while copying; what is asked for at once stands in the first copy's way. */
const mappedAheadMax = 32;
const mappedAheadBytes = 2 ** 31;

interface Attempt {
  readonly manifest: WeightManifest;
  readonly result: TransferResult;
  readonly copyCount: number;
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
  readonly #gave: string[] = [];
  #progress: PullProgress;
  #isMutated = false;
  #isCopying = false;
  #bytes = 0;
  #copyMs = 0;
  #copyCount = 0;

  constructor(parts: DeviceParts & { readonly clock: Clock }, job: PullJob, stay: Stay) {
    this.#parts = parts;
    this.#job = job;
    this.#stay = stay;
    this.#progress = startPull(job.target.tensors.length, job.content);
  }

  async run(signal: AbortSignal) {
    void this.#mapWhileIdle(this.#job.memory.handles);
    for (const source of this.#job.sources) {
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
    try {
      const attempt = await this.#attempt(source, signal);
      return attempt === null ? "next" : this.#account(source, attempt);
    } catch (cause) {
      const error = asRelightError(cause);
      // Another source cannot help against what is wrong here.
      if (!mayTryElsewhere(error)) throw this.#mutatedOr(error);
      const failure = { source: source.name, code: error.code, message: error.message };
      const type = error.code === "generation_changed" ? "generation_changed" : "failed";
      const [progress, then] = step(this.#progress, { type, failure });
      this.#progress = progress;
      return then === "again" ? "again" : "next";
    }
  }

  async #attempt(source: WeightSource, signal: AbortSignal): Promise<Attempt | null> {
    const { target, limits } = this.#job;
    const key = coordinateKey(target.coordinate);
    const manifest = await source.offer(key, signal);
    const pairs = matchLayouts(manifest, target);
    const offer = { type: "offered", source: source.name, content: contentId(manifest) } as const;
    const [progress, then] = step(this.#progress, offer);
    this.#progress = progress;
    if (then !== "copy") return null;
    const missing = pairs.filter((pair) => !progress.verified.has(pair.target));
    const want = { generation: manifest.generation, ttlMs: limits.leaseMs };
    await using lease = await source.claim(key, want, signal);
    this.#mapAhead(lease.handles);
    const plan = planTransfer(missing, manifest, target, limits);
    const wanted = new Map(missing.map((pair) => [pair.target, digestOf(manifest, pair.source)]));
    const result = await this.#transfer({ plan, wanted, handles: lease.handles }, signal);
    if (!(await isStillCurrent(lease, limits.leaseMs, signal))) {
      throw new RelightError(
        "generation_changed",
        `Cannot keep what "${source.name}" gave: it changed its weights meanwhile`,
      );
    }
    return { manifest, result, copyCount: plan.copyCount };
  }

  /** One after the other, so that the first copy never stands behind more than one of them. */
  async #mapWhileIdle(handles: readonly MemoryHandle[]): Promise<void> {
    for (let index = 0; index < handles.length && !this.#isCopying; index += 1) {
      // Who needs the address gets the error.
      await this.#stay.addressOf(handles, index).catch(() => undefined);
    }
  }

  /** As much as the first copies need, mapped by the GPU's thread while this one plans. */
  #mapAhead(handles: readonly MemoryHandle[]): void {
    let bytes = 0;
    for (let index = 0; index < Math.min(handles.length, mappedAheadMax); index += 1) {
      this.#stay.addressOf(handles, index).catch(() => undefined);
      bytes += this.#job.target.allocations[index]?.bytes ?? 0;
      if (bytes >= mappedAheadBytes) return;
    }
  }

  async #transfer(
    read: {
      readonly plan: ReturnType<typeof planTransfer>;
      readonly wanted: ReadonlyMap<number, string>;
      readonly handles: EngineMemory["handles"];
    },
    signal: AbortSignal,
  ): Promise<TransferResult> {
    const { target, memory, limits } = this.#job;
    const { driver, clock, openDigester } = this.#parts;
    const { context, addressOf } = this.#stay;
    const segmentCountMax = Math.max(1, placeCount(target.tensors));
    const digester = await openDigester(this.#stay, segmentCountMax);
    const sides = { source: read.handles, target: memory.handles };
    this.#isCopying = true;
    this.#isMutated ||= read.plan.bytes > 0;
    return await runTransfer(
      {
        driver: driver satisfies GpuDriver,
        context,
        digester,
        clock,
        addressOf: (side, allocation) => addressOf(sides[side], allocation),
      },
      { ...limits, plan: read.plan, target, wanted: read.wanted, seed: digestSeed(target) },
      signal,
    );
  }

  #account(
    source: WeightSource,
    { manifest, result, copyCount }: Attempt,
  ): WeightManifest | "next" {
    const { verified, wrong } = result;
    const failure = wrong.length === 0 ? null : this.#wrongTensors(source, wrong);
    const [progress, then] = step(this.#progress, { type: "copied", verified, failure });
    this.#progress = progress;
    this.#bytes += result.bytes;
    this.#copyMs += result.ms;
    this.#copyCount += copyCount;
    if (verified.length > 0) this.#gave.push(source.name);
    return then === "done" ? manifest : "next";
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
      copyCount: this.#copyCount,
      sources: this.#gave,
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

/**
 * A source that has died meanwhile cannot say that it has changed; what verified against its manifest is
 * that generation's, whole, because nothing else has those digests.
 */
async function isStillCurrent(
  lease: Awaited<ReturnType<WeightSource["claim"]>>,
  ttlMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  try {
    await lease.renew(ttlMs, signal);
    return true;
  } catch (cause) {
    const { code } = asRelightError(cause);
    if (code === "generation_changed") return false;
    if (code === "source_unreachable" || code === "source_gone") return true;
    throw cause;
  }
}

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
