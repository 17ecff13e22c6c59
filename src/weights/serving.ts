// SPDX-License-Identifier: Apache-2.0
// The source's part where a target cannot map its memory: ranges are copied into pinned host memory for
// HTTP, or sent to the target's GPU through NCCL. The engine takes no part. The agent's context on the
// engine's GPU lives from the first such reader until nobody has read for a while.

import { assert, RelightError } from "../errors.ts";
import type { EventHandle, HostMemory, PairHandle, StreamHandle, Wait } from "../gpu/driver.ts";
import { at } from "../gpu/driver.ts";
import type { Clock } from "../platform/clock.ts";
import { type Stay, stayOnDevice } from "./device.ts";
import { Pacer } from "./pacer.ts";
import type { DeviceParts, EngineMemory } from "./publish.ts";
import type { SourceRange } from "./staged-carrier.ts";
import { slotBytes } from "./staged-carrier.ts";

export interface ServingOptions {
  readonly parts: Pick<DeviceParts, "driver"> & { readonly clock: Clock };
  /** Ranges that may lie in host memory at a time, each of `slotBytes`. */
  readonly slotsMax: number;
  /** For all readers together; Infinity for no cap. */
  readonly bytesPerSecondMax: number;
  /** How long the context is kept after the last reader. */
  readonly idleMsMax: number;
  /** Longest time for one range, or one group of sends. */
  readonly rangeMsMax: number;
}

/** Bytes in host memory, until they are released. */
export interface Filled {
  readonly memory: Uint8Array<SharedArrayBuffer>;
  readonly release: () => void;
}

export class WeightServing implements AsyncDisposable {
  readonly #options: ServingOptions;
  readonly #pacer: Pacer;
  readonly #stays = new Map<string, Promise<ServingStay>>();

  constructor(options: ServingOptions) {
    this.#options = options;
    this.#pacer = new Pacer(options.parts.clock, () => options.bytesPerSecondMax);
  }

  /** The ranges one behind the other. @throws device_memory, device_handle_invalid, deadline_exceeded */
  async fill(
    memory: EngineMemory,
    ranges: readonly SourceRange[],
    signal: AbortSignal,
  ): Promise<Filled> {
    const bytes = totalOf(ranges);
    await this.#pacer.pass(bytes, signal);
    const stay = await this.#begin(memory);
    return await stay.fill({ memory, ranges, bytes }, this.#wait(signal));
  }

  /** Meets a target's GPU. It stays open until the context is given back. */
  async pair(memory: EngineMemory, id: string, signal: AbortSignal): Promise<void> {
    const stay = await this.#begin(memory);
    await stay.pair(id, this.#wait(signal));
  }

  /** @throws request_invalid for a pair that was never opened */
  async send(
    memory: EngineMemory,
    { pair, ranges }: { readonly pair: string; readonly ranges: readonly SourceRange[] },
    signal: AbortSignal,
  ): Promise<void> {
    await this.#pacer.pass(totalOf(ranges), signal);
    const stay = await this.#begin(memory);
    await stay.send({ memory, pair, ranges }, this.#wait(signal));
  }

  /** What keeps NCCL from being used here, or `null`. */
  async ncclMissing(): Promise<string | null> {
    return await this.#options.parts.driver.pairId().then(
      () => null,
      (error: Error) => error.message,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const stays = [...this.#stays.values()];
    this.#stays.clear();
    await Promise.all(stays.map((stay) => stay.then((one) => one.end()).catch(() => undefined)));
  }

  #wait(signal: AbortSignal): Wait {
    return { signal, deadlineMs: this.#options.rangeMsMax };
  }

  /** A stay that will not end before what is begun here. */
  async #begin(memory: EngineMemory): Promise<ServingStay> {
    for (;;) {
      const stay = await this.#stay(memory);
      // It may have been given back while this waited for it; then there is another.
      if (stay.begin()) return stay;
    }
  }

  /** One for each GPU. */
  #stay({ deviceUuid }: EngineMemory): Promise<ServingStay> {
    const known = this.#stays.get(deviceUuid);
    if (known !== undefined) return known;
    const forget = () => this.#stays.delete(deviceUuid);
    const opened = ServingStay.open(deviceUuid, this.#options, forget);
    opened.catch(forget);
    this.#stays.set(deviceUuid, opened);
    return opened;
  }
}

interface Slot {
  readonly memory: Uint8Array<SharedArrayBuffer>;
  readonly offsetBytes: number;
  readonly event: EventHandle;
}

class ServingStay {
  readonly #options: ServingOptions;
  readonly #stay: Stay;
  readonly #stream: StreamHandle;
  readonly #host: HostMemory;
  readonly #free: Slot[];
  readonly #waiting: ((slot: Slot) => void)[] = [];
  readonly #pairs = new Map<string, { readonly pair: PairHandle; readonly stream: StreamHandle }>();
  readonly #leave: () => Promise<void>;
  /** Slots handed out, and calls under way. */
  #uses = 0;
  #isOver = false;
  #idle = new AbortController();

  private constructor(fields: {
    options: ServingOptions;
    stay: Stay;
    stream: StreamHandle;
    host: HostMemory;
    slots: Slot[];
    leave: () => Promise<void>;
  }) {
    this.#options = fields.options;
    this.#stay = fields.stay;
    this.#stream = fields.stream;
    this.#host = fields.host;
    this.#free = fields.slots;
    this.#leave = fields.leave;
  }

  static async open(
    deviceUuid: string,
    options: ServingOptions,
    onEnd: () => void,
  ): Promise<ServingStay> {
    const { driver } = options.parts;
    const { promise, resolve, reject } = Promise.withResolvers<ServingStay>();
    const over = Promise.withResolvers<void>();
    const staying = stayOnDevice(driver, deviceUuid, async (stay) => {
      const [stream, host] = await Promise.all([
        driver.openStream(stay.context),
        driver.shareHost(stay.context, options.slotsMax * slotBytes),
      ]);
      const events = await Promise.all(
        Array.from({ length: options.slotsMax }, () => driver.openEvent(stay.context)),
      );
      const slots = events.map((event, index): Slot => {
        const offsetBytes = index * slotBytes;
        return {
          event,
          offsetBytes,
          memory: host.memory.subarray(offsetBytes, offsetBytes + slotBytes),
        };
      });
      const leave = async () => {
        onEnd();
        over.resolve();
        await staying.catch(() => undefined);
      };
      resolve(new ServingStay({ options, stay, stream, host, slots, leave }));
      await over.promise;
    });
    staying.catch(reject);
    return await promise;
  }

  /** False when it is being given back. Each of the calls below ends what this began. */
  begin(): boolean {
    if (this.#isOver) return false;
    this.#uses += 1;
    this.#idle.abort();
    return true;
  }

  async fill(
    what: {
      readonly memory: EngineMemory;
      readonly ranges: readonly SourceRange[];
      readonly bytes: number;
    },
    wait: Wait,
  ): Promise<Filled> {
    const { memory, ranges, bytes } = what;
    const slot = await this.#take();
    try {
      if (bytes > slotBytes) throw tooLarge(bytes);
      await this.#copyOut({ memory, ranges, slot }, wait);
    } catch (error) {
      this.#give(slot);
      throw error;
    }
    let isReleased = false;
    const release = () => {
      if (!isReleased) this.#give(slot);
      isReleased = true;
    };
    return { memory: slot.memory.subarray(0, bytes), release };
  }

  async pair(id: string, wait: Wait): Promise<void> {
    const { driver } = this.#options.parts;
    try {
      const { context } = this.#stay;
      const meeting = { id: Uint8Array.from(Buffer.from(id, "hex")), rank: 0 } as const;
      const stream = await driver.openStream(context);
      const pair = await driver.openPair(context, meeting, wait);
      this.#pairs.set(id, { pair, stream });
    } finally {
      this.#end();
    }
  }

  async send(
    what: {
      readonly memory: EngineMemory;
      readonly pair: string;
      readonly ranges: readonly SourceRange[];
    },
    wait: Wait,
  ): Promise<void> {
    const { driver } = this.#options.parts;
    try {
      const opened = this.#pairs.get(what.pair);
      if (opened === undefined) {
        throw new RelightError("request_invalid", "Cannot send weights: the pair was never opened");
      }
      const moves = await Promise.all(
        what.ranges.map(async ({ allocation, offsetBytes, bytes }) => {
          const base = await this.#stay.addressOf(what.memory.handles, allocation);
          return { do: "send", address: at(base, offsetBytes), bytes } as const;
        }),
      );
      await driver.exchange(opened.stream, opened.pair, { moves, wait });
    } catch (error) {
      // NCCL is of no more use after a failure; whoever waits for these bytes is freed by it.
      const broken = this.#pairs.get(what.pair);
      this.#pairs.delete(what.pair);
      if (broken !== undefined) await driver.close(broken.pair);
      throw error;
    } finally {
      this.#end();
    }
  }

  /** Closes the context, and with it everything in it. */
  async end(): Promise<void> {
    this.#isOver = true;
    this.#idle.abort();
    await this.#leave();
  }

  async #copyOut(
    what: {
      readonly memory: EngineMemory;
      readonly ranges: readonly SourceRange[];
      readonly slot: Slot;
    },
    wait: Wait,
  ): Promise<void> {
    const { driver } = this.#options.parts;
    const { memory, ranges, slot } = what;
    let { offsetBytes } = slot;
    const commands = [];
    for (const range of ranges) {
      const base = await this.#stay.addressOf(memory.handles, range.allocation);
      const from = at(base, range.offsetBytes);
      const host = this.#host.handle;
      commands.push({ do: "to_host", host, offsetBytes, from, bytes: range.bytes } as const);
      offsetBytes += range.bytes;
    }
    await driver.submit(this.#stream, [...commands, { do: "record", event: slot.event }]);
    await driver.reach(slot.event, wait);
  }

  async #take(): Promise<Slot> {
    const slot = this.#free.shift();
    if (slot !== undefined) return slot;
    const { promise, resolve } = Promise.withResolvers<Slot>();
    this.#waiting.push(resolve);
    return await promise;
  }

  #give(slot: Slot): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(slot);
    else next(slot);
    this.#end();
  }

  #end(): void {
    this.#uses -= 1;
    assert(this.#uses >= 0, "what ends has begun");
    if (this.#uses === 0) void this.#endWhenIdle();
  }

  async #endWhenIdle(): Promise<void> {
    const idle = new AbortController();
    this.#idle = idle;
    const { clock } = this.#options.parts;
    try {
      await clock.sleep(this.#options.idleMsMax, idle.signal);
    } catch {
      return; // Somebody reads again, or it was ended.
    }
    if (this.#uses > 0) return;
    this.#isOver = true;
    await this.#leave();
  }
}

function totalOf(ranges: readonly SourceRange[]): number {
  return ranges.reduce((sum, { bytes }) => sum + bytes, 0);
}

function tooLarge(bytes: number): RelightError {
  return new RelightError(
    "request_invalid",
    `Cannot give ${bytes} bytes at once: at most ${slotBytes}`,
  );
}
