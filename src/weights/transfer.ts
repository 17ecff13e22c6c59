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
import { combineDigests, type Digester, segmentsOf } from "./digests.ts";
import type { WeightLayout } from "./manifest.ts";
import type { PlannedCopy, TransferPlan } from "./plan.ts";
import { rowCount } from "./tensor.ts";

export interface TransferParts {
  readonly driver: GpuDriver;
  readonly context: ContextHandle;
  readonly digester: Digester;
  readonly clock: Clock;
  /** Where an allocation is mapped in this process; asked for when the first copy needs it. */
  readonly addressOf: (side: "source" | "target", allocation: number) => Promise<DevicePtr>;
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
  const copied = await driver.openEvent(context);
  const deadlineMs = job.silenceMsMax + (job.plan.bytes / job.bytesPerSecondMin) * 1_000;
  const wait = { signal, deadlineMs };
  try {
    const places = placesOf(job);
    const enqueued: Promise<void>[] = [];
    let sent = 0;
    for (const [index, batch] of job.plan.batches.entries()) {
      signal.throwIfAborted();
      const copies = await bindCopies(parts, batch.copies);
      enqueued.push(driver.submit(copyStream, [...copies, { do: "record", event: copied }]));
      const checks = await checkCommands(parts, job, {
        tensors: batch.tensors,
        first: places.first[index] ?? 0,
      });
      enqueued.push(driver.submit(checkStream, [{ do: "await", event: copied }, ...checks]));
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
    await drain(parts, [copyStream, checkStream], job.silenceMsMax);
    throw translated(error);
  } finally {
    await driver.close(copyStream);
    await driver.close(checkStream);
    await driver.close(copied);
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

async function bindCopies(
  { addressOf }: TransferParts,
  copies: readonly PlannedCopy[],
): Promise<Command[]> {
  const commands: Command[] = [];
  for (const copy of copies) {
    const from = at(await addressOf("source", copy.from.allocation), copy.from.offsetBytes);
    const to = at(await addressOf("target", copy.to.allocation), copy.to.offsetBytes);
    if (copy.rows === 1) commands.push({ do: "copy", to, from, bytes: copy.rowBytes });
    else commands.push({ do: "copy_rows", ...copy, to, from });
  }
  return commands;
}

async function checkCommands(
  { addressOf, digester }: TransferParts,
  { target, seed }: TransferJob,
  { tensors, first }: { readonly tensors: readonly number[]; readonly first: number },
): Promise<Command[]> {
  const segments = [];
  for (const index of tensors) {
    const tensor = tensorAt(target, index);
    segments.push(...segmentsOf(tensor, await addressOf("target", tensor.allocation)));
  }
  return digester.commands(segments, { seed, first });
}

function judge({ plan, target, wanted }: TransferJob, ranges: readonly string[]) {
  const verified = [...plan.empty];
  const wrong: number[] = [];
  let next = 0;
  for (const index of plan.batches.flatMap(({ tensors }) => tensors)) {
    const count = rowCount(tensorAt(target, index));
    const digest = combineDigests(ranges.slice(next, next + count));
    next += count;
    (digest === wanted.get(index) ? verified : wrong).push(index);
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

/** What was enqueued may still run; memory is unmapped only after it, or never if it hangs. */
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
