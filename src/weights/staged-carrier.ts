// SPDX-License-Identifier: Apache-2.0
// Bytes over a network: ranges of the source's memory arrive in pinned slots of host memory, and the GPU
// takes them from there while others arrive. Neighbours at the source travel together, wherever they go
// at the target.

import type { Command, EventHandle, HostMemory, StreamHandle, Wait } from "../gpu/driver.ts";
import { type BoundCopy, type Carrier, type CarrierTarget, type Run, runsOf } from "./carrier.ts";

export interface SourceRange {
  readonly allocation: number;
  readonly offsetBytes: number;
  readonly bytes: number;
}

/** What transport/weights-http-client.ts gives: several requests at a time. */
export interface RangeLink {
  /** How many requests keep it busy. */
  readonly requestsMax: number;
  /**
   * The ranges one behind the other into `into`, whose length is theirs.
   * @throws source_unreachable, source_stalled, source_gone, generation_changed, source_protocol
   */
  read(
    request: {
      readonly token: string;
      readonly ranges: readonly SourceRange[];
      readonly into: Uint8Array<SharedArrayBuffer>;
    },
    signal: AbortSignal,
  ): Promise<void>;
}

export const slotBytes = 8 * 2 ** 20;
/** More would not fit into a request's first line. */
export const rangesPerRequestMax = 256;
/** Batches whose requests may be under way: the next begins while the last of one are still coming. */
const deliveriesMax = 2;

/** Releases nothing: what it opens goes with the stay, as its streams may still use it. */
export async function stagedCarrier(
  link: RangeLink,
  { driver, stay }: CarrierTarget,
  token: string,
): Promise<Carrier> {
  const slots = await Slots.open({ driver, stay }, link.requestsMax);
  return {
    transport: "http",
    deliveriesMax,
    prefetch: () => undefined,
    bring: async ({ copies, stream, after }, wait) => {
      const requests = [...requestsOf(copies)];
      const under = new AbortController();
      const within = { ...wait, signal: AbortSignal.any([wait.signal, under.signal]) };
      const fetching = requests.map(async (runs) => {
        try {
          await slots.use(within, (slot) => fetch({ link, token, runs, slot, stream }, within));
        } catch (error) {
          // One that failed ends the others: the batch cannot become whole.
          under.abort(error);
          throw error;
        }
      });
      await Promise.allSettled(fetching);
      await Promise.all(fetching);
      await driver.submit(stream, after);
    },
    abandon: async () => undefined,
    [Symbol.asyncDispose]: async () => slots.close(),
  };

  async function fetch(
    what: {
      readonly link: RangeLink;
      readonly token: string;
      readonly runs: readonly Run[];
      readonly slot: Slot;
      readonly stream: StreamHandle;
    },
    wait: Wait,
  ): Promise<void> {
    const { runs, slot } = what;
    const bytes = runs.reduce((sum, run) => sum + run.bytes, 0);
    const into = slot.memory.subarray(0, bytes);
    await link.read({ token: what.token, ranges: rangesOf(runs), into }, wait.signal);
    await driver.submit(what.stream, scatter(runs, slot));
    slot.isFree = driver.reach(slot.event, wait);
    slot.isFree.catch(() => undefined); // Told to whoever wants the slot next.
  }
}

function scatter(runs: readonly Run[], slot: Slot): Command[] {
  let offsetBytes = slot.offsetBytes;
  const commands = runs.map(({ to, bytes }): Command => {
    const command = { do: "from_host", to, host: slot.host, offsetBytes, bytes } as const;
    offsetBytes += bytes;
    return command;
  });
  return [...commands, { do: "record", event: slot.event }];
}

/** Runs together as long as they fit into a slot and a request. */
function* requestsOf(copies: readonly BoundCopy[]): Generator<Run[]> {
  let open: Run[] = [];
  let bytes = 0;
  let ranges = 0;
  for (const run of runsOf(copies, slotBytes)) {
    const isNext = !follows(open.at(-1), run);
    if (bytes + run.bytes > slotBytes || (isNext && ranges === rangesPerRequestMax)) {
      yield open;
      open = [];
      bytes = 0;
      ranges = 0;
    }
    if (open.length === 0 || isNext) ranges += 1;
    open.push(run);
    bytes += run.bytes;
  }
  if (open.length > 0) yield open;
}

/** The runs as the source sees them: neighbours are one range. */
function rangesOf(runs: readonly Run[]): SourceRange[] {
  const ranges: { allocation: number; offsetBytes: number; bytes: number }[] = [];
  let before: Run | undefined;
  for (const run of runs) {
    const last = ranges.at(-1);
    if (last !== undefined && follows(before, run)) last.bytes += run.bytes;
    else
      ranges.push({ allocation: run.allocation, offsetBytes: run.offsetBytes, bytes: run.bytes });
    before = run;
  }
  return ranges;
}

function follows(before: Run | undefined, run: Run): boolean {
  return (
    before !== undefined &&
    before.allocation === run.allocation &&
    before.offsetBytes + before.bytes === run.offsetBytes
  );
}

interface Slot {
  readonly host: HostMemory["handle"];
  readonly memory: Uint8Array<SharedArrayBuffer>;
  readonly offsetBytes: number;
  readonly event: EventHandle;
  /** Resolves when the GPU has taken what lies in it. */
  isFree: Promise<void>;
}

/** Two for each request under way: one is being received into while the GPU empties the other. */
class Slots {
  readonly #free: Slot[];
  readonly #waiting: ((slot: Slot) => void)[] = [];
  readonly #close: () => Promise<void>;

  private constructor(slots: readonly Slot[], close: () => Promise<void>) {
    this.#free = [...slots];
    this.#close = close;
  }

  static async open({ driver, stay }: CarrierTarget, requestsMax: number): Promise<Slots> {
    const count = 2 * requestsMax;
    const { handle, memory } = await driver.shareHost(stay.context, count * slotBytes);
    const events = await Promise.all(
      Array.from({ length: count }, () => driver.openEvent(stay.context)),
    );
    const slots = events.map((event, index) => {
      const offsetBytes = index * slotBytes;
      const part = memory.subarray(offsetBytes, offsetBytes + slotBytes);
      return { host: handle, memory: part, offsetBytes, event, isFree: Promise.resolve() };
    });
    return new Slots(slots, async () => {
      await Promise.all([...events, handle].map((one) => driver.close(one)));
    });
  }

  async use(wait: Wait, act: (slot: Slot) => Promise<void>): Promise<void> {
    const slot = await this.#take();
    try {
      wait.signal.throwIfAborted();
      await slot.isFree;
      await act(slot);
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free.push(slot);
      else next(slot);
    }
  }

  close(): Promise<void> {
    return this.#close();
  }

  #take(): Promise<Slot> {
    // The oldest is the one that the GPU is done with first.
    const slot = this.#free.shift();
    if (slot !== undefined) return Promise.resolve(slot);
    const { promise, resolve } = Promise.withResolvers<Slot>();
    this.#waiting.push(resolve);
    return promise;
  }
}
