// SPDX-License-Identifier: Apache-2.0
// How bytes come from a leased source into the target's GPU memory. Every transport is one carrier; what
// is copied, checked and counted is the same for all of them (transfer.ts). Here: memory that this process
// can map, which needs nothing of the source but its handles.

import type {
  Command,
  DevicePtr,
  GpuDriver,
  MemoryHandle,
  StreamHandle,
  Wait,
} from "../gpu/driver.ts";
import { at } from "../gpu/driver.ts";
import type { Stay } from "./device.ts";
import type { PlannedCopy } from "./plan.ts";

export type TransportName = "cuda-ipc" | "http" | "nccl";

/** A planned copy whose place at the target is known. */
export interface BoundCopy {
  readonly copy: PlannedCopy;
  readonly to: DevicePtr;
}

export interface Delivery {
  readonly copies: readonly BoundCopy[];
  readonly stream: StreamHandle;
  /** Enqueued on the stream behind the last of the copies. */
  readonly after: readonly Command[];
}

/** For one lease. Calls of `bring` may overlap; what they enqueue on the stream then mixes. */
export interface Carrier extends AsyncDisposable {
  readonly transport: TransportName;
  /** How many deliveries under way keep it busy. */
  readonly deliveriesMax: number;
  /** What can be done early for copies that come next. */
  prefetch(copies: readonly PlannedCopy[]): void;
  /**
   * Resolves when all is enqueued on the stream, `after` too.
   * @throws source_unreachable, source_stalled, source_gone, generation_changed, device_handle_invalid,
   *   deadline_exceeded, cancelled
   */
  bring(delivery: Delivery, wait: Wait): Promise<void>;
  /** Ends what is under way after a failure, so that the stream comes to its end. */
  abandon(): Promise<void>;
}

/** What a carrier may use of the target's side. */
export interface CarrierTarget {
  readonly driver: GpuDriver;
  readonly stay: Stay;
}

/** Enough for the GPU to have copies to do while the event loop does something else for milliseconds. */
const mappedDeliveriesMax = 8;

/** What is asked for at once stands in the first copy's way; the rest is mapped while copying. */
const mappedAheadMax = 32;
const mappedAheadBytes = 2 ** 31;

/** @param handles by allocation of the source's manifest */
export function mappedCarrier(
  { driver, stay }: CarrierTarget,
  handles: readonly MemoryHandle[],
): Carrier {
  const asked = new Map<number, Promise<void>>();
  const known = new Map<number, DevicePtr>();
  const map = (allocation: number): Promise<void> => {
    const before = asked.get(allocation);
    if (before !== undefined) return before;
    const mapped = stay.addressOf(handles, allocation).then((address) => {
      known.set(allocation, address);
    });
    asked.set(allocation, mapped);
    mapped.catch(() => undefined); // Who needs the address gets the error.
    return mapped;
  };
  for (const allocation of firstOf(handles)) void map(allocation);
  return {
    transport: "cuda-ipc",
    deliveriesMax: mappedDeliveriesMax,
    prefetch: (copies) => {
      for (const { from } of copies) void map(from.allocation);
    },
    bring: async ({ copies, stream, after }) => {
      await Promise.all(copies.map(({ copy }) => map(copy.from.allocation)));
      const commands = copies.map(({ copy, to }) => command(copy, to, known));
      await driver.submit(stream, [...commands, ...after]);
    },
    abandon: async () => undefined,
    [Symbol.asyncDispose]: async () => undefined,
  };
}

/** As much as the first copies need, mapped by the GPU's thread while this one plans. */
function firstOf(handles: readonly MemoryHandle[]): number[] {
  let bytes = 0;
  const first: number[] = [];
  for (const [allocation, handle] of handles.slice(0, mappedAheadMax).entries()) {
    if (bytes >= mappedAheadBytes) break;
    first.push(allocation);
    bytes += handleBytes(handle);
  }
  return first;
}

export function handleBytes(handle: MemoryHandle): number {
  if (handle.kind === "ipc") return handle.bytes;
  return handle.pieces.reduce((sum, piece) => sum + piece.bytes, 0);
}

function command(
  copy: PlannedCopy,
  to: DevicePtr,
  mapped: ReadonlyMap<number, DevicePtr>,
): Command {
  const from = at(mapped.get(copy.from.allocation) as DevicePtr, copy.from.offsetBytes);
  if (copy.rows === 1) return { do: "copy", to, from, bytes: copy.rowBytes };
  const { rowBytes, rows, toPitchBytes, fromPitchBytes } = copy;
  return { do: "copy_rows", to, from, rowBytes, rows, toPitchBytes, fromPitchBytes };
}

/** One contiguous range of the source's memory, and where it goes at the target. */
export interface Run {
  readonly allocation: number;
  readonly offsetBytes: number;
  readonly bytes: number;
  readonly to: DevicePtr;
}

/** The copies row by row, none longer than `bytesMax`: for transports that know no pitch. */
export function* runsOf(copies: readonly BoundCopy[], bytesMax: number): Generator<Run> {
  for (const { copy, to } of copies) {
    for (let row = 0; row < copy.rows; row += 1) {
      for (let done = 0; done < copy.rowBytes; done += bytesMax) {
        yield {
          allocation: copy.from.allocation,
          offsetBytes: copy.from.offsetBytes + row * copy.fromPitchBytes + done,
          bytes: Math.min(bytesMax, copy.rowBytes - done),
          to: at(to, row * copy.toPitchBytes + done),
        };
      }
    }
  }
}
