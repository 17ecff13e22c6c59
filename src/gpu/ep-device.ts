// SPDX-License-Identifier: Apache-2.0
// One rank's memory and kernels: the window that peers write, the slots where theirs are mapped, the
// state behind one address that never changes, and the launches. Who is a member is the caller's; see
// src/elastic/rank/group.ts. Layout and rules: docs/kernels.md.

import { RelightError } from "../errors.ts";
import { abi, type FlatName, type StructValues, structBytes, writeStruct } from "./abi.ts";
import {
  at,
  type Command,
  type ContextHandle,
  type DevicePtr,
  type GpuDriver,
  type GpuMemory,
  type GpuSlots,
  type KernelHandle,
  type MemoryHandle,
  type StreamHandle,
  type Wait,
} from "./driver.ts";
import { type EpShape, epLayout } from "./ep-layout.ts";
import { type EpMember, type EpPatch, type EpReport, EpState, reportOf } from "./ep-state.ts";

export type EpFormat = "bf16" | "fp8" | "fp8_pow2" | "fp8_ue8m0";

/** Where an expert lives. */
export interface EpOwner {
  readonly slot: number;
  /** Its number among the experts of that slot. */
  readonly local: number;
}

/** By expert; null for one that nobody has. */
export type EpOwnerTable = readonly (EpOwner | null)[];

export interface EpOwners {
  readonly now: EpOwnerTable;
  readonly next: EpOwnerTable;
  readonly from: bigint;
}

export interface EpDeviceOptions {
  readonly ordinal: number;
  readonly slot: number;
  readonly shape: EpShape;
  readonly expertsMax: number;
  /** How long a kernel waits for a peer before it gives it up. */
  readonly timeoutMs: number;
  /** At most one an SM; all ranks of one GPU together must fit on it. */
  readonly blocks: number;
  /** The module with the relight_ep kernels. */
  readonly image: Uint8Array;
}

export interface EpDispatch {
  readonly x: DevicePtr;
  /** int32 [tokens][topk], global expert, negative for none. */
  readonly topkIndex: DevicePtr;
  /** f32 [tokens][topk], or null when combine brings them. */
  readonly topkWeights: DevicePtr | null;
  readonly tokens: number;
  readonly format: EpFormat;
  readonly out: EpOutputs;
}

/** Where dispatch writes, as RelightEpDispatchArgs says it; `slots` rows for each local expert. */
export interface EpOutputs {
  readonly slots: number;
  readonly x: DevicePtr;
  readonly scales: DevicePtr | null;
  readonly source: DevicePtr;
  readonly range: DevicePtr;
  readonly count: DevicePtr;
}

export interface EpCombine {
  /** bf16 [local experts][slots][hidden], in dispatch's places. */
  readonly y: DevicePtr;
  readonly out: DevicePtr;
  readonly slots: number;
  /** f32 [tokens][topk] when dispatch had none. */
  readonly topkWeights: DevicePtr | null;
}

interface Kernels {
  readonly init: KernelHandle;
  readonly barrier: KernelHandle;
  readonly bf16: KernelHandle;
  readonly fp8: KernelHandle;
  readonly combine: KernelHandle;
}

const { constants } = abi;
const bothHalves = constants.RELIGHT_EP_SEND | constants.RELIGHT_EP_RECEIVE;
const formats: Readonly<Record<EpFormat, number>> = {
  bf16: constants.RELIGHT_EP_BF16,
  fp8: constants.RELIGHT_EP_FP8,
  fp8_pow2: constants.RELIGHT_EP_FP8_POW2,
  fp8_ue8m0: constants.RELIGHT_EP_FP8_UE8M0,
};
const ownerTables = 2; // In use, and agreed for later.
const openMsMax = 60_000;

export class EpDevice implements AsyncDisposable {
  readonly slot: number;
  readonly shape: EpShape;
  readonly context: ContextHandle;
  /** Dispatch and combine run here. */
  readonly stream: StreamHandle;
  /** What must not stand behind a kernel that waits: masks and reports. */
  readonly control: StreamHandle;
  /** Addresses of everything below stay; a captured launch may be replayed after any change. */
  readonly #driver: GpuDriver;
  readonly #options: EpDeviceOptions;
  readonly #kernels: Kernels;
  readonly #slots: GpuSlots;
  readonly #window: GpuMemory;
  readonly #memory: GpuMemory;
  readonly #owners: GpuMemory;
  readonly #state: EpState;

  private constructor(fields: {
    driver: GpuDriver;
    options: EpDeviceOptions;
    context: ContextHandle;
    stream: StreamHandle;
    control: StreamHandle;
    kernels: Kernels;
    slots: GpuSlots;
    window: GpuMemory;
    memory: GpuMemory;
    owners: GpuMemory;
    state: EpState;
  }) {
    this.#driver = fields.driver;
    this.#options = fields.options;
    this.slot = fields.options.slot;
    this.shape = fields.options.shape;
    this.context = fields.context;
    this.stream = fields.stream;
    this.control = fields.control;
    this.#kernels = fields.kernels;
    this.#slots = fields.slots;
    this.#window = fields.window;
    this.#memory = fields.memory;
    this.#owners = fields.owners;
    this.#state = fields.state;
  }

  /**
   * Takes all the memory that the rank will ever need; no membership is in force yet.
   * @throws device_memory, device_unsupported, request_invalid (the kernels refuse the shape)
   */
  static async open(driver: GpuDriver, options: EpDeviceOptions): Promise<EpDevice> {
    const { shape } = options;
    const layout = epLayout(shape);
    const { handle: context } = await driver.openContext(options.ordinal);
    const [stream, control] = [await driver.openStream(context), await driver.openStream(context)];
    const kernels = await loadKernels(driver, context, options.image);
    const window = await driver.allocate(context, {
      bytes: layout.windowBytes,
      sharing: "descriptor",
    });
    const take = (bytes: number) => driver.allocate(context, { bytes, sharing: "private" });
    const memory = await take(scratchAt + layout.scratchBytes);
    const owners = await take(ownerTables * 4 * options.expertsMax);
    const want = { count: shape.ranksMax, slotBytes: layout.windowBytes };
    const slots = await driver.reserveSlots(context, want);
    const windows = Array.from({ length: shape.ranksMax }, (_, slot) =>
      slot === options.slot ? window.address : at(slots.address, slot * slots.slotBytes),
    );
    const state = new EpState({
      rank: options.slot,
      shape,
      expertsMax: options.expertsMax,
      windowBytes: layout.windowBytes,
      scratch: scratchOf(memory),
      scratchBytes: layout.scratchBytes,
      timeoutMs: options.timeoutMs,
      windows,
      owners: owners.address,
    });
    const device = new EpDevice({
      ...{ driver, options, context, stream, control, kernels },
      ...{ slots, window, memory, owners, state },
    });
    await device.#start();
    return device;
  }

  /** A handle to the own window for a peer; its descriptors are the caller's to close. */
  exportWindow(): Promise<MemoryHandle> {
    return this.#driver.exportMemory(this.#window.id);
  }

  get windowBytes(): number {
    return this.#window.bytes;
  }

  /** Maps a peer's window. Kernels may run meanwhile; the peer takes part only by setMembers(). */
  connect(slot: number, window: MemoryHandle): Promise<void> {
    return this.#driver.fillSlot(this.#slots.id, slot, window);
  }

  /** The slot is a sink again. No launch that still knew the peer may be running. */
  disconnect(slot: number): Promise<void> {
    return this.#driver.emptySlot(this.#slots.id, slot);
  }

  /** Who takes part from when on. Only while nothing runs: one launch must not see half of it. */
  async setMembers(members: readonly EpMember[]): Promise<void> {
    this.#state.setMembers(members);
    await this.#upload(this.stream, [this.#state.membership()]);
  }

  /** `now` until epoch `from`, then `next`. Only while nothing runs. */
  async setOwners(owners: EpOwners): Promise<void> {
    const bytes = 4 * this.#options.expertsMax;
    const next = at(this.#owners.address, bytes);
    await this.#driver.submit(this.stream, [
      { do: "upload", to: this.#owners.address, bytes: tableOf(owners.now, bytes) },
      { do: "upload", to: next, bytes: tableOf(owners.next, bytes) },
    ]);
    this.#state.setOwners({ now: this.#owners.address, next, from: owners.from });
    await this.#upload(this.stream, [this.#state.membership()]);
  }

  /** Takes slots out at once, also under a kernel that waits for them. */
  async mask(active: number): Promise<void> {
    await this.#upload(this.control, [this.#state.setActive(active)]);
  }

  /** `epoch` counts as done and nobody is suspected. Only while nothing runs. */
  async restart(epoch: bigint): Promise<void> {
    await this.#upload(this.stream, EpState.restart(epoch));
  }

  /** Forgets suspicions of slots outside the mask. Only while nothing runs. */
  async keepSuspects(mask: number): Promise<void> {
    const wait = { signal: AbortSignal.timeout(openMsMax), deadlineMs: openMsMax };
    const { suspect } = await this.report(wait);
    if ((suspect & ~mask) === 0) return;
    await this.#upload(this.stream, [EpState.suspects(suspect & mask)]);
  }

  async setTimeout(ms: number): Promise<void> {
    await this.#upload(this.control, [EpState.timeout(ms)]);
  }

  /** Enqueues on the rank's stream and waits until it is done. */
  async run(commands: readonly Command[], wait: Wait): Promise<void> {
    await this.#driver.submit(this.stream, commands);
    await this.#driver.finish(this.stream, wait);
  }

  dispatch({ x, topkIndex, topkWeights, tokens, format, out }: EpDispatch): Command {
    const args = packed("RelightEpDispatchArgs", {
      state: this.#memory.address,
      x,
      topk_index: topkIndex,
      topk_weights: topkWeights ?? 0n,
      token_count_at: 0n,
      token_count: BigInt(tokens),
      format: BigInt(formats[format]),
      flags: BigInt(bothHalves),
      slots: BigInt(out.slots),
      out_x: out.x,
      out_scales: out.scales ?? 0n,
      out_source: out.source,
      out_range: out.range,
      out_count: out.count,
    });
    const kernel = format === "bf16" ? this.#kernels.bf16 : this.#kernels.fp8;
    return this.#launch(kernel, args, constants.RELIGHT_EP_DISPATCH_SHARED);
  }

  combine({ y, out, slots, topkWeights }: EpCombine): Command {
    const args = packed("RelightEpCombineArgs", {
      state: this.#memory.address,
      y,
      topk_weights: topkWeights ?? 0n,
      out,
      slots: BigInt(slots),
      flags: BigInt(bothHalves | (topkWeights === null ? 0 : constants.RELIGHT_EP_WEIGHTS)),
    });
    return this.#launch(this.#kernels.combine, args, constants.RELIGHT_EP_COMBINE_SHARED);
  }

  /** A meeting of all members on the GPU, to align what is timed after it. */
  barrier(): Command {
    const args = packed("RelightEpBarrierArgs", { state: this.#memory.address });
    return launch(this.#kernels.barrier, args, { blocks: 1, threads: 32, sharedBytes: 0 });
  }

  /** What the kernels have written; also while they run. */
  async report(wait: Wait): Promise<EpReport> {
    const from = { address: this.#memory.address, bytes: EpState.bytes };
    return reportOf(await this.#driver.read(this.control, from, wait));
  }

  /** Gives everything back, the context last. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#driver.close(this.context);
  }

  async #start(): Promise<void> {
    const init = packed("RelightEpInitArgs", { state: this.#memory.address });
    await this.#driver.submit(this.stream, [
      // A window starts as NaN and as no epoch that ever was: nothing in it looks like an answer.
      { do: "fill", to: this.#window.address, byte: 0xff, bytes: this.#window.bytes },
      { do: "fill", to: this.#memory.address, byte: 0, bytes: this.#memory.bytes },
      { do: "fill", to: this.#owners.address, byte: 0xff, bytes: this.#owners.bytes },
      this.#uploadOf(this.#state.whole()),
      launch(this.#kernels.init, init, { blocks: 1, threads: 32, sharedBytes: 0 }),
    ]);
    const wait = { signal: AbortSignal.timeout(openMsMax), deadlineMs: openMsMax };
    await this.#driver.finish(this.stream, wait);
    const { initStatus } = await this.report(wait);
    if (initStatus === 0) return;
    throw new RelightError(
      "request_invalid",
      `Cannot lay out a window for ${JSON.stringify(this.shape)}: check ${initStatus} of the kernels failed`,
      { details: { check: initStatus } },
    );
  }

  async #upload(stream: StreamHandle, patches: readonly EpPatch[]): Promise<void> {
    await this.#driver.submit(
      stream,
      patches.map((patch) => this.#uploadOf(patch)),
    );
  }

  #uploadOf({ offset, bytes }: EpPatch): Command {
    return { do: "upload", to: at(this.#memory.address, offset), bytes };
  }

  #launch(kernel: KernelHandle, args: Uint8Array, sharedBytes: number): Command {
    const { blocks } = this.#options;
    return launch(kernel, args, { blocks, threads: constants.RELIGHT_EP_THREADS, sharedBytes });
  }
}

const scratchAt = Math.ceil(EpState.bytes / 256) * 256;

/** The state stands first, on the allocation's own alignment; the scratch follows it. */
function scratchOf(memory: GpuMemory): DevicePtr {
  return at(memory.address, scratchAt);
}

function tableOf(owners: EpOwnerTable, bytes: number): Uint8Array {
  const table = Buffer.alloc(bytes, 0xff);
  owners.forEach((owner, expert) => {
    if (owner !== null) table.writeUInt32LE(((owner.slot << 16) | owner.local) >>> 0, 4 * expert);
  });
  return table;
}

async function loadKernels(
  driver: GpuDriver,
  context: ContextHandle,
  image: Uint8Array,
): Promise<Kernels> {
  const module = await driver.loadModule(context, image);
  const named = (name: string, shared: number) => driver.kernel(module, name, shared);
  return {
    init: await named("relight_ep_init", 0),
    barrier: await named("relight_ep_barrier", 0),
    bf16: await named("relight_ep_dispatch_bf16", constants.RELIGHT_EP_DISPATCH_SHARED),
    fp8: await named("relight_ep_dispatch_fp8", constants.RELIGHT_EP_DISPATCH_SHARED),
    combine: await named("relight_ep_combine", constants.RELIGHT_EP_COMBINE_SHARED),
  };
}

function packed<Name extends FlatName>(name: Name, values: StructValues<Name>): Uint8Array {
  const bytes = Buffer.alloc(structBytes(name));
  writeStruct(name, values, { bytes, offset: 0 });
  return bytes;
}

function launch(
  kernel: KernelHandle,
  args: Uint8Array,
  { blocks, threads, sharedBytes }: { blocks: number; threads: number; sharedBytes: number },
): Command {
  return {
    do: "launch",
    kernel,
    grid: [blocks, 1, 1],
    block: [threads, 1, 1],
    sharedBytes,
    cooperative: false,
    params: [{ struct: args }],
  };
}
