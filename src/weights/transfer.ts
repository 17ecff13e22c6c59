// SPDX-License-Identifier: Apache-2.0
// A plan on the GPU: batch after batch is brought by the source's carrier on one stream and digested on
// another, and each batch's tensors are judged as soon as their digests are there, so that only the last
// batch's remain when the last byte has arrived and what is verified can be relied upon before the rest.

import { assert, RelightError } from "../errors.ts";
import { at, type DevicePtr, type EventHandle, type StreamHandle } from "../gpu/driver.ts";
import type { Carrier, CarrierTarget } from "./carrier.ts";
import { combineDigests, type Digester, type Segment, segmentsOf } from "./digests.ts";
import type { WeightLayout } from "./manifest.ts";
import type { Batch, TransferPlan } from "./plan.ts";
import { rowCount } from "./tensor.ts";

export interface TransferParts extends CarrierTarget {
  readonly digester: Digester;
  readonly carrier: Carrier;
  /** Where an allocation of the target is mapped in this process. */
  readonly addressOf: (allocation: number) => Promise<DevicePtr>;
}

export interface TransferJob {
  readonly plan: TransferPlan;
  readonly target: WeightLayout;
  /** By target tensor. */
  readonly wanted: ReadonlyMap<number, string>;
  readonly seed: bigint;
  /** Asked before each batch; holds it back as long as a serving source wants it. */
  readonly admit: (bytes: number, signal: AbortSignal) => Promise<void>;
  /** The slowest link that is still worth waiting for; with the bytes under way it makes deadlines. */
  readonly bytesPerSecondMin: number;
  readonly silenceMsMax: number;
  readonly onJudged: (judged: Judged) => void;
}

/** Target tensors whose bytes have arrived: as promised, or not. */
export interface Judged {
  readonly verified: readonly number[];
  readonly wrong: readonly number[];
}

/** Returns once every tensor of the plan is judged. @throws what the carrier throws, device_lost */
export async function runTransfer(
  parts: TransferParts,
  job: TransferJob,
  signal: AbortSignal,
): Promise<void> {
  await using transfer = await Transfer.open(parts, job, signal);
  await transfer.run();
}

interface Streams {
  readonly copy: StreamHandle;
  readonly check: StreamHandle;
}

/** What one batch needs from being asked for until it is judged. */
interface Lane {
  readonly copied: EventHandle;
  readonly checked: EventHandle;
  busy: Promise<void>;
  bytes: number;
}

class Transfer implements AsyncDisposable {
  readonly #parts: TransferParts;
  readonly #job: TransferJob;
  readonly #streams: Streams;
  readonly #lanes: readonly Lane[];
  readonly #addresses: TargetAddresses;
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  #nextPlace = 0;
  /** Resolves when the checks of all batches so far stand on their stream, in the batches' order. */
  #checksEnqueued: Promise<void> = Promise.resolve();
  #failure: { readonly reason: unknown } | null = null;

  private constructor(
    parts: TransferParts,
    job: TransferJob,
    opened: { signal: AbortSignal; streams: Streams; lanes: readonly Lane[] },
  ) {
    this.#parts = parts;
    this.#job = job;
    this.#streams = opened.streams;
    this.#lanes = opened.lanes;
    this.#addresses = new TargetAddresses(parts.addressOf, job);
    this.#signal = AbortSignal.any([opened.signal, this.#stop.signal]);
  }

  static async open(
    parts: TransferParts,
    job: TransferJob,
    signal: AbortSignal,
  ): Promise<Transfer> {
    const { driver, stay, carrier } = parts;
    const openLane = async (): Promise<Lane> => {
      const [copied, checked] = await Promise.all([
        driver.openEvent(stay.context),
        driver.openEvent(stay.context),
      ]);
      return { copied, checked, busy: Promise.resolve(), bytes: 0 };
    };
    const laneCount = Math.min(carrier.deliveriesMax, Math.max(1, job.plan.batches.length));
    // All at once: each is a message to the GPU's thread and back.
    const [copy, check, ...lanes] = await Promise.all([
      driver.openStream(stay.context),
      driver.openStream(stay.context),
      ...Array.from({ length: laneCount }, openLane),
    ]);
    return new Transfer(parts, job, { signal, streams: { copy, check }, lanes });
  }

  async run(): Promise<void> {
    const { plan, onJudged } = this.#job;
    if (plan.empty.length > 0) onJudged({ verified: plan.empty, wrong: [] });
    for (const [index, batch] of plan.batches.entries()) {
      const lane = this.#lanes[index % this.#lanes.length];
      assert(lane !== undefined, "a transfer has lanes");
      await lane.busy;
      this.#throwFailure();
      await this.#addresses.ready(index);
      await this.#guarded(this.#job.admit(batch.bytes, this.#signal));
      lane.bytes = batch.bytes;
      lane.busy = this.#bring(lane, batch).catch((reason: unknown) => this.#fail(reason));
      this.#addresses.prefetch(index + 1);
      this.#parts.carrier.prefetch(plan.batches[index + 1]?.copies ?? []);
    }
    await Promise.all(this.#lanes.map((lane) => lane.busy));
    this.#throwFailure();
  }

  /** What was enqueued may still run; nothing is unmapped before it is done, or has had as long again. */
  async [Symbol.asyncDispose](): Promise<void> {
    const { driver } = this.#parts;
    this.#stop.abort(new RelightError("cancelled", "Cannot go on copying weights: it has ended"));
    if (this.#failure !== null) await this.#parts.carrier.abandon();
    await Promise.all(this.#lanes.map((lane) => lane.busy));
    const wait = { signal: new AbortController().signal, deadlineMs: this.#job.silenceMsMax };
    for (const stream of [this.#streams.copy, this.#streams.check]) {
      // The first error is the one that is told; a stream that does not end says nothing new.
      await driver.finish(stream, wait).catch(() => undefined);
    }
    const events = this.#lanes.flatMap(({ copied, checked }) => [copied, checked]);
    const opened = [this.#streams.copy, this.#streams.check, ...events];
    await Promise.all(opened.map((handle) => driver.close(handle)));
  }

  async #bring(lane: Lane, batch: Batch): Promise<void> {
    const { driver, carrier, digester } = this.#parts;
    const wait = this.#wait();
    const copies = batch.copies.map((copy) => ({ copy, to: this.#addresses.at(copy.to) }));
    // Asked for first: while bytes are on their way this thread prepares how they are checked.
    const brought = carrier.bring(
      {
        copies,
        stream: this.#streams.copy,
        after: [{ do: "record", event: lane.copied }],
      },
      wait,
    );
    brought.catch(() => undefined); // Awaited below.
    const places = this.#check(batch);
    const before = this.#checksEnqueued;
    const enqueue = async () => {
      await brought;
      // A tensor that began in the batch before is whole only when that one has come too.
      await before;
      await driver.submit(this.#streams.check, [
        ...places.commands.prepare,
        { do: "await", event: lane.copied },
        ...places.commands.run,
        ...places.commands.collect,
        { do: "record", event: lane.checked },
      ]);
    };
    const enqueued = enqueue();
    this.#checksEnqueued = enqueued;
    await enqueued;
    await driver.reach(lane.checked, wait);
    const ranges = digester.collected(places);
    lane.bytes = 0;
    this.#job.onJudged(judge(this.#job, batch, ranges));
  }

  #check(batch: Batch) {
    const { target, seed } = this.#job;
    const segments: Segment[] = [];
    for (const index of batch.tensors) {
      const tensor = tensorAt(target, index);
      segments.push(...segmentsOf(tensor, this.#addresses.base(tensor.allocation)));
    }
    const first = this.#nextPlace;
    this.#nextPlace += segments.length;
    const commands = this.#parts.digester.commands(segments, { seed, first });
    return { first, count: segments.length, commands };
  }

  /** As long as everything under way may take on the slowest link, and a silence. */
  #wait() {
    const bytes = this.#lanes.reduce((sum, lane) => sum + lane.bytes, 0);
    const { silenceMsMax, bytesPerSecondMin } = this.#job;
    const deadlineMs = silenceMsMax + (bytes / bytesPerSecondMin) * 1_000;
    return { signal: this.#signal, deadlineMs };
  }

  async #guarded(waiting: Promise<void>): Promise<void> {
    try {
      await waiting;
    } catch (error) {
      this.#fail(error);
      this.#throwFailure();
    }
  }

  #fail(reason: unknown): void {
    this.#failure ??= { reason: translated(reason) };
    this.#stop.abort(this.#failure.reason);
  }

  #throwFailure(): void {
    if (this.#failure !== null) throw this.#failure.reason;
    if (this.#signal.aborted) throw translated(this.#signal.reason);
  }
}

/** Where the target's allocations are mapped: those of the next batch are asked for early. */
class TargetAddresses {
  readonly #addressOf: TransferParts["addressOf"];
  readonly #job: TransferJob;
  readonly #asked = new Map<number, Promise<void>>();
  readonly #known = new Map<number, DevicePtr>();

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

  at(region: { readonly allocation: number; readonly offsetBytes: number }): DevicePtr {
    return at(this.base(region.allocation), region.offsetBytes);
  }

  base(allocation: number): DevicePtr {
    const base = this.#known.get(allocation);
    assert(base !== undefined, "a batch is bound once its allocations are mapped");
    return base;
  }

  #ask(index: number): Promise<void>[] {
    const { copies, tensors } = this.#job.plan.batches[index] ?? { copies: [], tensors: [] };
    const allocations = new Set(copies.map(({ to }) => to.allocation));
    for (const tensor of tensors) {
      allocations.add(tensorAt(this.#job.target, tensor).allocation);
    }
    return Array.from(allocations, (allocation) => this.#map(allocation));
  }

  #map(allocation: number): Promise<void> {
    const before = this.#asked.get(allocation);
    if (before !== undefined) return before;
    const mapped = this.#addressOf(allocation).then((address) => {
      this.#known.set(allocation, address);
    });
    this.#asked.set(allocation, mapped);
    return mapped;
  }
}

function judge({ target, wanted }: TransferJob, batch: Batch, ranges: readonly string[]): Judged {
  const verified: number[] = [];
  const wrong: number[] = [];
  let next = 0;
  for (const index of batch.tensors) {
    const count = rowCount(tensorAt(target, index));
    const digest = count === 1 ? ranges[next] : combineDigests(ranges.slice(next, next + count));
    next += count;
    (digest === wanted.get(index) ? verified : wrong).push(index);
  }
  return { verified, wrong };
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
