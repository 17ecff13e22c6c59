// SPDX-License-Identifier: Apache-2.0
// What a rank needs of its GPU and of its peers' processes: the ports of this folder. src/gpu/ep-device.ts
// and src/transport/window-exchange.ts fit them; the composition root joins them.

import type { Command, MemoryHandle, Wait } from "../../gpu/driver.ts";
import type { Seat } from "../view.ts";

/** A slot that takes part in steps `onAt` <= step < `offAt`. */
export interface DeviceMember {
  readonly slot: number;
  readonly incarnation: number;
  readonly onAt: bigint;
  readonly offAt: bigint;
}

/** Where a rank sends tokens of an expert; null: nowhere. */
export type OwnerTable = readonly ({ readonly slot: number; readonly local: number } | null)[];

/** One half of a step as the kernels saw it; masks of slots. */
export interface HalfResult {
  readonly epoch: bigint;
  readonly used: number;
  readonly failed: number;
}

export interface DeviceReport {
  readonly dispatch: HalfResult;
  readonly combine: HalfResult;
  /** Waits that were given up, ever. */
  readonly fault: { readonly count: bigint };
  /** Slots that the kernels leave out until somebody decides. */
  readonly suspect: number;
}

/**
 * One rank's window, state and stream. What is marked "idle" must not overlap with run(); everything
 * else may come at any time, also under kernels that wait.
 */
export interface RankDevice {
  readonly slot: number;
  /** Its descriptors are the caller's to close. */
  exportWindow(): Promise<MemoryHandle>;
  /** Maps a peer's window; it takes part by setMembers() alone. */
  connect(slot: number, window: MemoryHandle): Promise<void>;
  /** Idle. Makes the slot a sink. */
  disconnect(slot: number): Promise<void>;
  /** Idle. Whoever is not named takes no part. */
  setMembers(members: readonly DeviceMember[]): Promise<void>;
  /** Idle. `now` for steps before `from`, then `next`. */
  setOwners(owners: {
    readonly now: OwnerTable;
    readonly next: OwnerTable;
    readonly from: bigint;
  }): Promise<void>;
  /** Leaves out every slot whose bit is not set, from this moment on. */
  mask(active: number): Promise<void>;
  /** Idle. `step` counts as the last one done; nobody is suspected. */
  restart(step: bigint): Promise<void>;
  /** Idle. Forgets suspicions of the slots whose bits are not set. */
  keepSuspects(mask: number): Promise<void>;
  /** Enqueues and waits until done. */
  run(commands: readonly Command[], wait: Wait): Promise<void>;
  report(wait: Wait): Promise<DeviceReport>;
}

/** A peer's window, fetched. Closing it closes descriptors, not what was mapped meanwhile. */
export interface FetchedWindow extends Disposable {
  readonly handle: MemoryHandle;
}

/** How windows travel between processes of one machine. */
export interface WindowExchange {
  /** What goes into `Occupant.address`. */
  readonly address: string;
  /** Answers whoever asks for the window of this seat from now on. */
  offer(seat: Seat, exportWindow: () => Promise<MemoryHandle>): void;
  /** @throws source_unreachable, not_found (another seat sits there), deadline_exceeded */
  fetch(address: string, seat: Seat, signal: AbortSignal): Promise<FetchedWindow>;
}
