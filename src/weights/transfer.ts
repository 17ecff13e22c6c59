// SPDX-License-Identifier: Apache-2.0
// A plan on the GPU: batch after batch is copied on one stream and digested on another, so that only the
// last batch's digests remain when the last byte has arrived. The source's engine takes no part.
// Commands are enqueued well ahead; nothing is unmapped before the streams are done.

import { assert, RelightError } from "../errors.ts";
import {
  at,
  type Command,
  type ContextHandle,
  type DevicePtr,
  type GpuDriver,
} from "../gpu/driver.ts";
import type { Clock } from "../platform/clock.ts";
import { combineDigests, type Digester, type Segment, segmentsOf } from "./digests.ts";
import type { WeightLayout } from "./manifest.ts";
import type { Batch, PlannedCopy, Region, TransferPlan } from "./plan.ts";
import { rowCount } from "./tensor.ts";

export type Side = "source" | "target";

export interface TransferParts {
  readonly driver: GpuDriver;
  readonly context: ContextHandle;
  readonly digester: Digester;
  readonly clock: Clock;
  /** Where an allocation is mapped in this process; asked for when the first copy needs it. */
  readonly addressOf: (side: Side, allocation: number) => Promise<DevicePtr>;
}

export interface TransferJob {
  readonly plan: TransferPlan;
  readonly target: WeightLayout;
  /** By target tensor. */
  readonly wanted: ReadonlyMap<number, string>;
  readonly seed: bigint;
  /** Infinity for no cap; a serving source may need one. */
  readonly bytesPerSecondMax: number;
  /** The slowest link that is still worth waiting for; with the bytes it makes the deadline. */
  readonly bytesPerSecondMin: number;
  readonly silenceMsMax: number;
}

export interface TransferResult {
  readonly verified: readonly number[];
  /** Arrived, but not what the source had promised. */
  readonly wrong: readonly number[];
  readonly bytes: number;
  readonly ms: number;
}

/** @throws deadline_exceeded, cancelled, device_lost, device_handle_invalid */
export async function runTransfer(
  parts: TransferParts,
  job: TransferJob,
  signal: AbortSignal,
): Promise<TransferResult> {
  const { driver, context, clock } = parts;
  const began = clock.monotonicMs();
  const copyStream = await driver.openStream(context);
  const checkStream = await driver.openStream(context);
  // An upload first waits for its stream; on the check stream, that would be for the copies.
  const tableStream = await driver.openStream(context);
  const copied = await driver.openEvent(context);
  const prepared = await driver.openEvent(context);
  const deadlineMs = job.silenceMsMax + (job.plan.bytes / job.bytesPerSecondMin) * 1_000;
  const wait = { signal, deadlineMs };
  try {
    const places = placesOf(job);
    const addresses = new Addresses(parts.addressOf, job);
    const enqueued: Promise<void>[] = [];
    const enqueue = (submitted: Promise<void>) => {
      // Told below, once all are; until then nobody listens.
      submitted.catch(() => undefined);
      enqueued.push(submitted);
    };
    let sent = 0;
    for (const [index, batch] of job.plan.batches.entries()) {
      signal.throwIfAborted();
      await addresses.ready(index);
      const copies = bindCopies(addresses, batch.copies);
      enqueue(driver.submit(copyStream, [...copies, { do: "record", event: copied }]));
      const first = places.first[index] ?? 0;
      const checks = checkCommands(parts.digester, addresses, { ...job, batch, first });
      const { prepare, run } = checks;
      enqueue(driver.submit(tableStream, [...prepare, { do: "record", event: prepared }]));
      const awaits = [copied, prepared].map((event) => ({ do: "await", event }) as const);
      enqueue(driver.submit(checkStream, [...awaits, ...run]));
      addresses.prefetch(index + 1);
      sent += batch.bytes;
      if (Number.isFinite(job.bytesPerSecondMax)) {
        await driver.finish(copyStream, wait);
        await pace(clock, { began, bytes: sent, rate: job.bytesPerSecondMax }, signal);
      }
    }
    await Promise.all(enqueued);
    await driver.finish(copyStream, wait);
    const digests = await parts.digester.results(
      checkStream,
      { first: 0, count: places.count },
      wait,
    );
    const { verified, wrong } = judge(job, digests);
    return { verified, wrong, bytes: job.plan.bytes, ms: clock.monotonicMs() - began };
  } catch (error) {
    await drain(parts, [copyStream, tableStream, checkStream], deadlineMs);
    throw translated(error);
  } finally {
    for (const handle of [copyStream, tableStream, checkStream, copied, prepared]) {
      await driver.close(handle);
    }
  }
}

/** In which place each batch's first range digest goes, batches in order and tensors within them. */
function placesOf({ plan, target }: TransferJob): { first: number[]; count: number } {
  let count = 0;
  const first = plan.batches.map(({ tensors }) => {
    const here = count;
    for (const index of tensors) count += rowCount(tensorAt(target, index));
    return here;
  });
  return { first, count };
}

/** Where allocations are mapped: those of the next batch are asked for while this one is bound. */
class Addresses {
  readonly #addressOf: TransferParts["addressOf"];
  readonly #job: TransferJob;
  readonly #asked = {
    source: new Map<number, Promise<void>>(),
    target: new Map<number, Promise<void>>(),
  };
  readonly #known = { source: new Map<number, DevicePtr>(), target: new Map<number, DevicePtr>() };

  constructor(addressOf: TransferParts["addressOf"], job: TransferJob) {
    this.#addressOf = addressOf;
    this.#job = job;
  }

  /** Resolves when everything that the batch names is mapped. */
  async ready(index: number): Promise<void> {
    await Promise.all(this.#ask(index));
  }

  /** Has it mapped by the GPU's thread while the GPU copies what was submitted before. */
  prefetch(index: number): void {
    for (const mapped of this.#ask(index)) mapped.catch(() => undefined);
  }

  at(side: Side, region: Region): DevicePtr {
    return at(this.base(side, region.allocation), region.offsetBytes);
  }

  base(side: Side, allocation: number): DevicePtr {
    const base = this.#known[side].get(allocation);
    assert(base !== undefined, "a batch is bound once its allocations are mapped");
    return base;
  }

  #ask(index: number): Promise<void>[] {
    const { copies, tensors } = this.#job.plan.batches[index] ?? { copies: [], tensors: [] };
    const source = new Set(copies.map(({ from }) => from.allocation));
    const target = new Set(copies.map(({ to }) => to.allocation));
    for (const tensor of tensors) target.add(tensorAt(this.#job.target, tensor).allocation);
    return [
      ...Array.from(source, (allocation) => this.#map("source", allocation)),
      ...Array.from(target, (allocation) => this.#map("target", allocation)),
    ];
  }

  #map(side: Side, allocation: number): Promise<void> {
    const before = this.#asked[side].get(allocation);
    if (before !== undefined) return before;
    const mapped = this.#addressOf(side, allocation).then((address) => {
      this.#known[side].set(allocation, address);
    });
    this.#asked[side].set(allocation, mapped);
    return mapped;
  }
}

function bindCopies(addresses: Addresses, copies: readonly PlannedCopy[]): Command[] {
  return copies.map((copy): Command => {
    const [from, to] = [addresses.at("source", copy.from), addresses.at("target", copy.to)];
    if (copy.rows === 1) return { do: "copy", to, from, bytes: copy.rowBytes };
    const { rowBytes, rows, toPitchBytes, fromPitchBytes } = copy;
    return { do: "copy_rows", to, from, rowBytes, rows, toPitchBytes, fromPitchBytes };
  });
}

function checkCommands(
  digester: Digester,
  addresses: Addresses,
  check: TransferJob & { readonly batch: Batch; readonly first: number },
): ReturnType<Digester["commands"]> {
  const segments: Segment[] = [];
  for (const index of check.batch.tensors) {
    const tensor = tensorAt(check.target, index);
    segments.push(...segmentsOf(tensor, addresses.base("target", tensor.allocation)));
  }
  return digester.commands(segments, check);
}

function judge({ plan, target, wanted }: TransferJob, ranges: readonly string[]) {
  const verified = [...plan.empty];
  const wrong: number[] = [];
  let next = 0;
  for (const { tensors } of plan.batches) {
    for (const index of tensors) {
      const count = rowCount(tensorAt(target, index));
      const digest = count === 1 ? ranges[next] : combineDigests(ranges.slice(next, next + count));
      next += count;
      (digest === wanted.get(index) ? verified : wrong).push(index);
    }
  }
  return { verified, wrong };
}

async function pace(
  clock: Clock,
  spent: { readonly began: number; readonly bytes: number; readonly rate: number },
  signal: AbortSignal,
): Promise<void> {
  const dueMs = spent.began + (spent.bytes / spent.rate) * 1_000;
  const aheadMs = dueMs - clock.monotonicMs();
  if (aheadMs > 0) await clock.sleep(aheadMs, signal);
}

/** What was enqueued may still run; nothing is unmapped before it is done, or has had as long again. */
async function drain(
  { driver }: TransferParts,
  streams: readonly Parameters<GpuDriver["finish"]>[0][],
  deadlineMs: number,
): Promise<void> {
  const signal = new AbortController().signal;
  for (const stream of streams) {
    // The first error is the one that is told; a stream that does not end says nothing new.
    await driver.finish(stream, { signal, deadlineMs }).catch(() => undefined);
  }
}

function translated(error: unknown): unknown {
  if (error instanceof RelightError || !(error instanceof Error)) return error;
  if (error.name !== "AbortError") return error;
  return new RelightError("cancelled", "Cannot go on copying weights: it was cancelled", {
    cause: error,
  });
}

function tensorAt(layout: WeightLayout, index: number) {
  const tensor = layout.tensors[index];
  assert(tensor !== undefined, "a plan names tensors of its target");
  return tensor;
}
