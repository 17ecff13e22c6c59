// SPDX-License-Identifier: Apache-2.0
// The exchange kernels for the fake GPU: the membership rules, waits, suspicions and results of
// kernels/src/ep_*.cu, one launch after the other, bf16 rows only. What they compute is what
// kernels/reference/exchange.ts says; how they lay out the window is their own, simpler way.

import { setTimeout as pause } from "node:timers/promises";
import { fromBf16, toBf16 } from "../core/bf16.ts";
import { assert, InvariantError } from "../errors.ts";
import { abi, placeOf, readScalar, readStruct, structBytes, writeScalar } from "./abi.ts";
import { at, type DevicePtr, type KernelParam } from "./driver.ts";
import { epLayout } from "./ep-layout.ts";
import { slotsOf } from "./ep-state.ts";
import type { FakeKernel } from "./fake.ts";
import type { FakeReach } from "./fake-memory.ts";

const stateName = "RelightEpState";
type StateField = Parameters<typeof placeOf<typeof stateName>>[1];
const { constants } = abi;
const lineBytes = 128;
/** Words of a source's line. Each is written by that source alone. */
const line = {
  dispatch: 0,
  tokens: 8,
  combine: 16,
  consumed: 24,
  suspects: 32,
  barrier: 40,
} as const;
const choicesAt = lineBytes * constants.RELIGHT_EP_RANKS_MAX;
const pollMs = 0.2;

/** What FakeOptions.kernels takes to be a GPU with the relight_ep kernels. */
export const fakeEpKernels: Readonly<Record<string, FakeKernel>> = {
  relight_ep_init: async (memory, { params }) => {
    new Launch(memory, stateOf("RelightEpInitArgs", params)).initialise();
  },
  relight_ep_barrier: async (memory, { params }) => {
    await new Launch(memory, stateOf("RelightEpBarrierArgs", params)).meet();
  },
  relight_ep_dispatch_bf16: async (memory, { params }) => {
    const args = argsOf("RelightEpDispatchArgs", params);
    await new Launch(memory, args.state).dispatch(args);
  },
  relight_ep_dispatch_fp8: () => {
    throw new InvariantError("the fake GPU exchanges bf16 rows only");
  },
  relight_ep_combine: async (memory, { params }) => {
    const args = argsOf("RelightEpCombineArgs", params);
    await new Launch(memory, args.state).combine(args);
  },
};

/** What the fake loads instead of the cubin: the names of the kernels above. */
export const fakeEpImage: Uint8Array = Buffer.from(
  `.target sm_90\n${Object.keys(fakeEpKernels)
    .map((name) => `.entry ${name}`)
    .join("\n")}\n`,
);

type Args<Name extends "RelightEpDispatchArgs" | "RelightEpCombineArgs"> = ReturnType<
  typeof readStruct<Name>
>;

/** One launch: it decides on the members that the state names as it begins. */
class Launch {
  readonly #memory: FakeReach;
  readonly #address: bigint;
  readonly #state: Buffer;
  readonly #slot: number;
  #failed = 0;

  constructor(memory: FakeReach, address: bigint) {
    this.#memory = memory;
    this.#address = address;
    this.#state = memory.read(address as DevicePtr, structBytes(stateName));
    this.#slot = this.#number("rank");
  }

  initialise(): void {
    const version = this.#number("abi_version");
    const { windowBytes } = this.#layout();
    this.#store("init_status", version !== abi.version ? 1n : 0n);
    if (this.#value("window_bytes") < BigInt(windowBytes)) this.#store("init_status", 9n);
  }

  async meet(): Promise<void> {
    const turn = this.#value("barriers") + 1n;
    const peers = this.#peers(this.#members(this.#value("dispatch_received") + 1n));
    for (const peer of peers) this.#tell(peer, "barrier", this.#tag(turn, this.#slot));
    for (const peer of peers) {
      await this.#await(peer, "barrier", turn, constants.RELIGHT_EP_PHASE_BARRIER);
    }
    this.#store("barriers", turn);
  }

  async dispatch(args: Args<"RelightEpDispatchArgs">): Promise<void> {
    const epoch = this.#value("dispatch_sent") + 1n;
    const members = this.#members(epoch);
    const tokens = Math.min(Number(args.token_count), this.#number("tokens_max"));
    const open: number[] = [];
    for (const peer of slotsOf(members)) if (await this.#mayWriteTo(peer, epoch)) open.push(peer);
    this.#send(args, { epoch, tokens, open });
    const sources = await this.#arrived(members, "dispatch", epoch);
    this.#pack(args, sources);
    this.#store("dispatch_sent", epoch);
    this.#publish("dispatch", epoch, members);
  }

  async combine(args: Args<"RelightEpCombineArgs">): Promise<void> {
    const epoch = this.#value("combine_sent") + 1n;
    const members = this.#members(epoch);
    for (const source of slotsOf(this.#word(this.#scratchAt(0)) & members)) {
      this.#reduceFor(source, args);
    }
    for (const peer of slotsOf(members)) {
      this.#tell(peer, "combine", this.#tag(epoch, this.#slot));
      this.#tell(peer, "consumed", this.#tag(epoch, this.#slot));
    }
    this.#addUp(args, await this.#arrived(members, "combine", epoch));
    this.#store("combine_sent", epoch);
    this.#publish("combine", epoch, members);
  }

  /** Slots that the launch's epoch counts as members and nobody suspects. */
  #members(epoch: bigint): number {
    const unmasked = this.#number("active") & ~this.#number("suspect");
    return slotsOf(unmasked >>> 0)
      .filter((slot) => this.#value("on_at", slot) <= epoch && epoch < this.#value("off_at", slot))
      .reduce((mask, slot) => (mask | (1 << slot)) >>> 0, 0);
  }

  #peers(members: number): number[] {
    return slotsOf(members).filter((slot) => slot !== this.#slot);
  }

  async #mayWriteTo(peer: number, epoch: bigint): Promise<boolean> {
    const older = epoch - 1n;
    const isNew = older === 0n || older < this.#value("on_at", peer);
    if (peer === this.#slot || isNew || older < this.#value("on_at", this.#slot)) return true;
    return await this.#await(peer, "consumed", older, constants.RELIGHT_EP_PHASE_GATE);
  }

  #send(
    args: Args<"RelightEpDispatchArgs">,
    { epoch, tokens, open }: { epoch: bigint; tokens: number; open: readonly number[] },
  ): void {
    const { hidden, topk } = this.#shape();
    const experts = this.#read(args.topk_index, tokens * topk * 4);
    const weights =
      args.topk_weights === 0n
        ? Buffer.alloc(tokens * topk * 4)
        : this.#read(args.topk_weights, tokens * topk * 4);
    const x = this.#read(args.x, tokens * hidden * 2);
    const owners = this.#owners(epoch);
    const sent = Buffer.alloc(4 * tokens);
    for (const peer of open) {
      const choices = Buffer.alloc(2 * tokens * topk, 0xff);
      for (let token = 0; token < tokens; token += 1) {
        const chosen = localChoices(experts, owners, { token, topk, peer });
        chosen.forEach((local, choice) => {
          choices.writeUInt16LE(local ?? 0xffff, 2 * (token * topk + choice));
        });
        if (chosen.every((local) => local === null)) continue;
        sent.writeUInt32LE((sent.readUInt32LE(4 * token) | (1 << peer)) >>> 0, 4 * token);
        const row = Buffer.concat([
          pad16(weights.subarray(4 * token * topk, 4 * (token + 1) * topk)),
          x.subarray(2 * token * hidden, 2 * (token + 1) * hidden),
        ]);
        this.#write(this.#rowAt(peer, this.#slot, token), row);
      }
      this.#write(this.#choicesAt(peer, this.#slot), choices);
      this.#tell(peer, "tokens", BigInt(tokens));
      this.#tell(peer, "dispatch", this.#tag(epoch, this.#slot));
    }
    this.#write(this.#scratchAt(2 + constants.RELIGHT_EP_RANKS_MAX), sent);
    this.#writeWord(this.#scratchAt(1), tokens);
  }

  /** Rows to their experts, by source, then token, then choice. */
  #pack(args: Args<"RelightEpDispatchArgs">, sources: number): void {
    const { hidden, topk, ranksMax, localExpertsMax, tokensMax } = this.#shape();
    const slots = Number(args.slots);
    const counts = Buffer.alloc(4 * localExpertsMax);
    const ranges = Buffer.alloc(8 * localExpertsMax * ranksMax);
    const header = Math.ceil((4 * topk) / 16) * 16;
    this.#writeWord(this.#scratchAt(0), sources);
    for (const source of slotsOf(sources)) {
      const tokens = Number(this.#lineWord(this.#slot, source, "tokens"));
      this.#writeWord(this.#scratchAt(2 + source), tokens);
      const choices = this.#read(this.#choicesAt(this.#slot, source), 2 * tokens * topk);
      for (let choice = 0; choice < tokens * topk; choice += 1) {
        const local = choices.readUInt16LE(2 * choice);
        if (local >= localExpertsMax) continue;
        const token = Math.floor(choice / topk);
        const place = counts.readUInt32LE(4 * local);
        counts.writeUInt32LE(place + 1, 4 * local);
        const range = 8 * (local * ranksMax + source);
        const count = ranges.readUInt32LE(range);
        if (count === 0) ranges.writeUInt32LE(place, range + 4);
        ranges.writeUInt32LE(count + 1, range);
        const row = this.#read(this.#rowAt(this.#slot, source, token), header + 2 * hidden);
        const to = BigInt(local * slots + place);
        this.#write(args.out_x + to * BigInt(2 * hidden), row.subarray(header));
        this.#writeWord(args.out_source + 4n * to, source * tokensMax + token);
        this.#writeWord(this.#indexAt(source) + BigInt(4 * choice), place);
      }
    }
    this.#write(args.out_count, counts);
    this.#write(args.out_range, ranges);
  }

  /** One weighted sum for each token that `source` sent, rounded once, to its home. */
  #reduceFor(source: number, args: Args<"RelightEpCombineArgs">): void {
    const { hidden, topk, localExpertsMax } = this.#shape();
    const slots = Number(args.slots);
    const tokens = this.#word(this.#scratchAt(2 + source));
    const choices = this.#read(this.#choicesAt(this.#slot, source), 2 * tokens * topk);
    for (let token = 0; token < tokens; token += 1) {
      const weights = this.#read(this.#rowAt(this.#slot, source, token), 4 * topk);
      const sum = new Float64Array(hidden);
      let isMine = false;
      for (let choice = 0; choice < topk; choice += 1) {
        const local = choices.readUInt16LE(2 * (token * topk + choice));
        if (local >= localExpertsMax) continue;
        isMine = true;
        const place = this.#word(this.#indexAt(source) + BigInt(4 * (token * topk + choice)));
        const y = this.#read(args.y + BigInt(2 * hidden * (local * slots + place)), 2 * hidden);
        const weight = weights.readFloatLE(4 * choice);
        sum.forEach((value, i) => {
          sum[i] = value + weight * fromBf16(y.readUInt16LE(2 * i));
        });
      }
      if (isMine) this.#write(this.#homeAt(source, this.#slot, token), bf16Row(sum));
    }
  }

  #addUp(args: Args<"RelightEpCombineArgs">, arrived: number): void {
    const { hidden } = this.#shape();
    const tokens = this.#word(this.#scratchAt(1));
    const sent = this.#read(this.#scratchAt(2 + constants.RELIGHT_EP_RANKS_MAX), 4 * tokens);
    for (let token = 0; token < tokens; token += 1) {
      const owners = sent.readUInt32LE(4 * token);
      this.#failed |= owners & ~arrived;
      const total = new Float64Array(hidden);
      for (const owner of slotsOf((owners & arrived) >>> 0)) {
        const row = this.#read(this.#homeAt(this.#slot, owner, token), 2 * hidden);
        total.forEach((value, i) => {
          total[i] = value + fromBf16(row.readUInt16LE(2 * i));
        });
      }
      this.#write(args.out + BigInt(2 * hidden * token), bf16Row(total));
    }
  }

  /** Members whose cell came; the others are failures of this launch. */
  async #arrived(members: number, cell: "dispatch" | "combine", epoch: bigint): Promise<number> {
    const phase =
      cell === "dispatch" ? constants.RELIGHT_EP_PHASE_ROUTE : constants.RELIGHT_EP_PHASE_COMBINE;
    let arrived = 0;
    for (const source of slotsOf(members)) {
      if (await this.#await(source, cell, epoch, phase)) arrived |= 1 << source;
    }
    return arrived >>> 0;
  }

  /** Ends by the cell, by the host's mask, by a peer's suspicion or by the deadline. */
  async #await(
    peer: number,
    cell: keyof typeof line,
    epoch: bigint,
    phase: number,
  ): Promise<boolean> {
    const wanted = this.#tag(epoch, peer);
    let deadline = performance.now() + Number(this.#live("timeout_ns")) / 1e6;
    let news = 0n;
    for (;;) {
      const seen = this.#lineWord(this.#slot, peer, cell);
      const isLater =
        cell === "consumed" && seen % 0x1_0000n === wanted % 0x1_0000n && seen > wanted;
      if (seen === wanted || isLater) return true;
      const unmasked = Number(this.#live("active") & ~this.#live("suspect"));
      if (((unmasked >>> peer) & 1) === 0) break;
      const heard = this.#rumours(unmasked, epoch);
      if (heard.news !== news)
        deadline = performance.now() + Number(this.#live("timeout_ns")) / 1e6;
      news = heard.news;
      if ((heard.mask >>> peer) & 1 || performance.now() > deadline) {
        this.#suspect(peer, phase, epoch);
        break;
      }
      await pause(pollMs);
    }
    this.#failed |= 1 << peer;
    return false;
  }

  #rumours(unmasked: number, epoch: bigint): { mask: number; news: bigint } {
    let mask = 0;
    let news = 0n;
    for (const peer of this.#peers(unmasked >>> 0)) {
      const word = this.#lineWord(this.#slot, peer, "suspects");
      news = news * 31n + word;
      // A window starts as all ones, which is no epoch that a step of ours comes to.
      const isFresh = word >> 32n >= epoch % 2n ** 32n && word >> 32n !== 0xffff_ffffn;
      if (isFresh) mask |= Number(word & 0xffff_ffffn);
    }
    return { mask: (mask & ~(1 << this.#slot)) >>> 0, news };
  }

  #suspect(peer: number, phase: number, epoch: bigint): void {
    const before = Number(this.#live("suspect"));
    const all = (before | (1 << peer)) >>> 0;
    if (all === before) return;
    this.#store("suspect", BigInt(all));
    const fault = placeOf(stateName, "fault").offset;
    const bytes = this.#read(this.#address + BigInt(fault), structBytes("RelightEpFault"));
    const set = (field: "count" | "epoch" | "phase" | "peer", value: bigint) =>
      writeScalar(bytes, placeOf("RelightEpFault", field), value);
    set("count", readStruct("RelightEpFault", { bytes, offset: 0 }).count + 1n);
    set("epoch", epoch);
    set("phase", BigInt(phase));
    set("peer", BigInt(peer));
    this.#write(this.#address + BigInt(fault), bytes);
    const word = (epoch % 2n ** 32n) * 2n ** 32n + BigInt(all);
    for (const other of this.#peers(Number(this.#live("active")))) {
      this.#tell(other, "suspects", word);
    }
  }

  #publish(half: "dispatch" | "combine", epoch: bigint, used: number): void {
    this.#store(half === "dispatch" ? "dispatch_received" : "combine_received", epoch);
    const bytes = Buffer.alloc(structBytes("RelightEpResult"));
    bytes.writeBigUInt64LE(epoch, 0);
    bytes.writeUInt32LE(used, 8);
    bytes.writeUInt32LE(this.#failed >>> 0, 12);
    this.#write(this.#address + BigInt(placeOf(stateName, half).offset), bytes);
  }

  #owners(epoch: bigint): Buffer {
    const isLater = this.#value("owner", 1) !== 0n && epoch >= this.#value("owner_at");
    return this.#read(this.#value("owner", isLater ? 1 : 0), 4 * this.#number("experts_max"));
  }

  #shape() {
    return {
      ranksMax: this.#number("ranks_max"),
      tokensMax: this.#number("tokens_max"),
      hidden: this.#number("hidden"),
      topk: this.#number("topk"),
      localExpertsMax: this.#number("local_experts_max"),
      parities: 1 as const,
      hasSelectRows: false,
    };
  }

  #layout() {
    return epLayout(this.#shape());
  }

  #tag(epoch: bigint, slot: number): bigint {
    return epoch * 0x1_0000n + this.#value("incarnation", slot);
  }

  #tell(peer: number, cell: keyof typeof line, value: bigint): void {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(value);
    this.#write(this.#lineAt(peer, this.#slot, cell), bytes);
  }

  #lineWord(holder: number, source: number, cell: keyof typeof line): bigint {
    return this.#read(this.#lineAt(holder, source, cell), 8).readBigUInt64LE(0);
  }

  #lineAt(holder: number, source: number, cell: keyof typeof line): bigint {
    return this.#value("window", holder) + BigInt(source * lineBytes + line[cell]);
  }

  #choicesAt(holder: number, source: number): bigint {
    const { tokensMax, topk } = this.#shape();
    return this.#value("window", holder) + BigInt(choicesAt + source * 2 * tokensMax * topk);
  }

  #rowAt(holder: number, source: number, token: number): bigint {
    const { rowAt, rowStride } = this.#layout();
    const row = source * this.#number("tokens_max") + token;
    return this.#value("window", holder) + BigInt(rowAt + row * rowStride);
  }

  #homeAt(holder: number, owner: number, token: number): bigint {
    const { combineAt } = this.#layout();
    const stride = Math.ceil((2 * this.#number("hidden")) / 128) * 128;
    const row = owner * this.#number("tokens_max") + token;
    return this.#value("window", holder) + BigInt(combineAt + row * stride);
  }

  /** Words of the scratch: sources, own tokens, tokens by source, then where own tokens went. */
  #scratchAt(word: number): bigint {
    return this.#value("scratch") + BigInt(this.#placesBytes() + 4 * word);
  }

  /** Where the choices of a source's tokens lie among their experts' rows. */
  #indexAt(source: number): bigint {
    const { tokensMax, topk } = this.#shape();
    return this.#value("scratch") + BigInt(4 * source * tokensMax * topk);
  }

  #placesBytes(): number {
    const { ranksMax, tokensMax, topk } = this.#shape();
    return Math.ceil((4 * ranksMax * tokensMax * topk) / 128) * 128;
  }

  #value(field: StateField, index = 0): bigint {
    return readScalar(this.#state, placeOf(stateName, field, index));
  }

  #number(field: StateField): number {
    return Number(this.#value(field));
  }

  /** As it is now, not as it was when the launch began. */
  #live(field: StateField): bigint {
    const { offset, type } = placeOf(stateName, field);
    const bytes = this.#read(this.#address + BigInt(offset), type === "u64" ? 8 : 4);
    return readScalar(bytes, { offset: 0, type });
  }

  #store(field: StateField, value: bigint): void {
    const { offset, type } = placeOf(stateName, field);
    const bytes = Buffer.alloc(type === "u64" ? 8 : 4);
    writeScalar(bytes, { offset: 0, type }, value);
    this.#write(this.#address + BigInt(offset), bytes);
  }

  #word(address: bigint): number {
    return this.#read(address, 4).readUInt32LE(0);
  }

  #writeWord(address: bigint, value: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value >>> 0);
    this.#write(address, bytes);
  }

  #read(address: bigint, bytes: number): Buffer {
    return this.#memory.read(at(address as DevicePtr, 0), bytes);
  }

  #write(address: bigint, bytes: Uint8Array): void {
    this.#memory.write(at(address as DevicePtr, 0), bytes);
  }
}

/** A token's choices as local experts of `peer`; null for a choice that lives elsewhere. */
function localChoices(
  experts: Buffer,
  owners: Buffer,
  { token, topk, peer }: { token: number; topk: number; peer: number },
): (number | null)[] {
  return Array.from({ length: topk }, (_, choice) => {
    const expert = experts.readInt32LE(4 * (token * topk + choice));
    if (expert < 0 || 4 * expert >= owners.byteLength) return null;
    const owner = owners.readUInt32LE(4 * expert);
    const isHere = owner !== constants.RELIGHT_EP_NO_OWNER && owner >>> 16 === peer;
    return isHere ? owner & 0xffff : null;
  });
}

function bf16Row(values: Float64Array): Buffer {
  const bytes = Buffer.alloc(2 * values.length);
  values.forEach((value, i) => {
    bytes.writeUInt16LE(toBf16(value), 2 * i);
  });
  return bytes;
}

function pad16(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((16 - (bytes.byteLength % 16)) % 16)]);
}

function stateOf(
  name: "RelightEpInitArgs" | "RelightEpBarrierArgs",
  params: readonly KernelParam[],
): bigint {
  return readStruct(name, { bytes: structIn(params), offset: 0 }).state;
}

function argsOf<Name extends "RelightEpDispatchArgs" | "RelightEpCombineArgs">(
  name: Name,
  params: readonly KernelParam[],
): Args<Name> {
  return readStruct(name, { bytes: structIn(params), offset: 0 });
}

function structIn([param]: readonly KernelParam[]): Buffer {
  assert(param !== undefined && "struct" in param, "a relight_ep kernel takes one struct");
  return Buffer.from(param.struct);
}
