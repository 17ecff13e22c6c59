// SPDX-License-Identifier: Apache-2.0
// RelightEpState as bytes: what the host writes into it once and at each change of membership, and what
// it reads back. Pure; ep-device.ts moves the bytes.

import {
  abi,
  type Place,
  placeOf,
  readScalar,
  readStruct,
  structBytes,
  writeScalar,
} from "./abi.ts";
import type { DevicePtr } from "./driver.ts";
import type { EpShape } from "./ep-layout.ts";

export const slotsMax = abi.constants.RELIGHT_EP_RANKS_MAX;
/** No epoch comes to this. */
export const never = 2n ** 64n - 1n;

const stateName = "RelightEpState";
type StateField = Parameters<typeof placeOf<typeof stateName>>[1];

/** A slot that takes part in the epochs `onAt` <= e < `offAt`. */
export interface EpMember {
  readonly slot: number;
  /** At most 65,535: what a cell has room for. */
  readonly incarnation: number;
  readonly onAt: bigint;
  readonly offAt: bigint;
}

/** One half of a step as a launch saw it. `failed` are slots that were lost on the way; 0 is a good step. */
export interface EpResult {
  readonly epoch: bigint;
  readonly used: number;
  readonly failed: number;
}

export interface EpFault {
  readonly count: bigint;
  readonly epoch: bigint;
  readonly phase: number;
  readonly peer: number;
}

/** What the kernels have written. */
export interface EpReport {
  readonly initStatus: number;
  /** Epoch of the last finished half of each kind. */
  readonly dispatched: bigint;
  readonly combined: bigint;
  readonly dispatch: EpResult;
  readonly combine: EpResult;
  readonly fault: EpFault;
  readonly active: number;
  readonly suspect: number;
}

export interface EpFirst {
  readonly rank: number;
  readonly shape: EpShape;
  readonly expertsMax: number;
  readonly windowBytes: number;
  readonly scratch: DevicePtr;
  readonly scratchBytes: number;
  readonly timeoutMs: number;
  readonly windows: readonly DevicePtr[];
  readonly owners: DevicePtr;
}

/** The bytes of one range of the state. */
export interface EpPatch {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** The host's side of one rank's state. */
export class EpState {
  static readonly bytes = structBytes(stateName);
  readonly #image = Buffer.alloc(EpState.bytes);

  constructor(first: EpFirst) {
    const { shape } = first;
    const once: Partial<Record<StateField, bigint>> = {
      abi_version: BigInt(abi.version),
      rank: BigInt(first.rank),
      ranks_max: BigInt(shape.ranksMax),
      tokens_max: BigInt(shape.tokensMax),
      hidden: BigInt(shape.hidden),
      topk: BigInt(shape.topk),
      experts_max: BigInt(first.expertsMax),
      local_experts_max: BigInt(shape.localExpertsMax),
      parities: BigInt(shape.parities),
      select_rows: shape.hasSelectRows ? 1n : 0n,
      window_bytes: BigInt(first.windowBytes),
      scratch: first.scratch,
      scratch_bytes: BigInt(first.scratchBytes),
      timeout_ns: BigInt(Math.round(first.timeoutMs * 1e6)),
    };
    for (const [field, value] of Object.entries(once)) this.#set(field as StateField, value);
    first.windows.forEach((address, slot) => {
      this.#set("window", address, slot);
    });
    this.#set("owner", first.owners);
    this.setMembers([]);
  }

  /** All of it, for the time before the first launch. */
  whole(): EpPatch {
    return { offset: 0, bytes: new Uint8Array(this.#image) };
  }

  /** Slots that are not named take no part. Returns what to upload while nothing runs. */
  setMembers(members: readonly EpMember[]): EpPatch {
    for (let slot = 0; slot < slotsMax; slot += 1) {
      const member = members.find((one) => one.slot === slot);
      this.#set("on_at", member?.onAt ?? never, slot);
      this.#set("off_at", member?.offAt ?? never, slot);
      this.#set("incarnation", BigInt((member?.incarnation ?? 0) & 0xffff), slot);
    }
    return this.setActive(maskOf(members.map(({ slot }) => slot)));
  }

  /** One word, so that it may be uploaded while kernels run. */
  setActive(mask: number): EpPatch {
    this.#set("active", BigInt(mask >>> 0));
    return this.#patch(placeOf(stateName, "active"), 4);
  }

  /** `table` is used from epoch `from` on, and the one that was used last until then. */
  setOwners(tables: {
    readonly now: DevicePtr;
    readonly next: DevicePtr;
    readonly from: bigint;
  }): void {
    this.#set("owner", tables.now);
    this.#set("owner", tables.next, 1);
    this.#set("owner_at", tables.from);
  }

  /** What setMembers() and setOwners() have changed, and the word of the active mask. */
  membership(): EpPatch {
    const from = placeOf(stateName, "on_at").offset;
    const end = placeOf(stateName, "suspect").offset;
    return this.#patch({ offset: from }, end - from);
  }

  /** Forgets suspicions and makes `epoch` the last finished one. Only while nothing runs. */
  static restart(epoch: bigint): readonly EpPatch[] {
    const epochs = (
      ["dispatch_sent", "dispatch_received", "combine_sent", "combine_received"] as const
    ).map((field) => {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64LE(epoch);
      return { offset: placeOf(stateName, field).offset, bytes: new Uint8Array(bytes) };
    });
    return [EpState.suspects(0), ...epochs];
  }

  static suspects(mask: number): EpPatch {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(mask >>> 0);
    return { offset: placeOf(stateName, "suspect").offset, bytes: new Uint8Array(bytes) };
  }

  static timeout(ms: number): EpPatch {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(Math.round(ms * 1e6)));
    return { offset: placeOf(stateName, "timeout_ns").offset, bytes: new Uint8Array(bytes) };
  }

  #set(field: StateField, value: bigint, index = 0): void {
    writeScalar(this.#image, placeOf(stateName, field, index), value);
  }

  #patch({ offset }: Pick<Place, "offset">, bytes: number): EpPatch {
    return { offset, bytes: new Uint8Array(this.#image.subarray(offset, offset + bytes)) };
  }
}

/** Reads what the kernels have written out of a copy of the state. */
export function reportOf(state: Uint8Array): EpReport {
  const bytes = Buffer.from(state.buffer, state.byteOffset, state.byteLength);
  const scalar = (field: StateField) => readScalar(bytes, placeOf(stateName, field));
  return {
    initStatus: Number(scalar("init_status")),
    dispatched: scalar("dispatch_received"),
    combined: scalar("combine_received"),
    dispatch: resultAt(bytes, "dispatch"),
    combine: resultAt(bytes, "combine"),
    fault: faultIn(bytes),
    active: Number(scalar("active")),
    suspect: Number(scalar("suspect")),
  };
}

export function maskOf(slots: readonly number[]): number {
  return slots.reduce((mask, slot) => (mask | (1 << slot)) >>> 0, 0);
}

export function slotsOf(mask: number): number[] {
  return Array.from({ length: slotsMax }, (_, slot) => slot).filter((slot) => (mask >>> slot) & 1);
}

function resultAt(bytes: Buffer, field: "dispatch" | "combine"): EpResult {
  const { offset } = placeOf(stateName, field);
  const { epoch, used, failed } = readStruct("RelightEpResult", { bytes, offset });
  return { epoch, used: Number(used), failed: Number(failed) };
}

function faultIn(bytes: Buffer): EpFault {
  const { offset } = placeOf(stateName, "fault");
  const { count, epoch, phase, peer } = readStruct("RelightEpFault", { bytes, offset });
  return { count, epoch, phase: Number(phase), peer: Number(peer) };
}
