// SPDX-License-Identifier: Apache-2.0
// The driver's calls in the order that each operation of the contract needs, on one thread. It may
// block, so it lives on the thread of cuda-worker.ts; cuda.ts is its face on the event loop.
// One core belongs to one thread: the driver's "current context" is a property of the thread.

import { setImmediate as nextTurn } from "node:timers/promises";
import { RelightError } from "../errors.ts";
import { Blas, blasWorkspaceBytes } from "./blas.ts";
import { CudaCommands } from "./cuda-commands.ts";
import { cudaError, cudaNotReady, cudaPeerAlreadyEnabled, cudaSuccess } from "./cuda-errors.ts";
import type {
  BlasHandle,
  Command,
  ContextHandle,
  DevicePtr,
  EventHandle,
  GpuContext,
  GpuDevice,
  GpuMemory,
  GpuSlots,
  GraphHandle,
  Handle,
  HostHandle,
  KernelHandle,
  MemoryHandle,
  MemoryId,
  ModuleHandle,
  PairHandle,
  PairMove,
  Sharing,
  SlotsHandle,
  StreamHandle,
  Wait,
} from "./driver.ts";
import { readBytesMax } from "./driver.ts";
import { Libcuda } from "./functions.ts";
import { HandleTable } from "./handles.ts";
import { Nccl, settle } from "./nccl.ts";
import { type MemoryUse, openMemoryUse } from "./nvml.ts";
import type { PackedCommand } from "./packed-copies.ts";
import {
  createMapping,
  emptySlot,
  exportMapping,
  fillSlot,
  importMapping,
  type Mapping,
  releaseMapping,
  releaseSlots,
  reserveSlots,
  type SlotRange,
} from "./vmm.ts";
import { checkWait } from "./wait.ts";

type Held =
  | { readonly how: "allocated"; readonly exportable: boolean }
  | { readonly how: "opened" }
  | { readonly how: "mapped"; readonly mapping: Mapping };

type Entry =
  | {
      kind: "context";
      owner: null;
      ordinal: number;
      device: number;
      raw: bigint;
    }
  | { kind: "memory"; owner: number; address: bigint; bytes: number; held: Held }
  | { kind: "slots"; owner: number; range: SlotRange }
  | { kind: "blas"; owner: number; blas: Blas; raw: bigint; workspace: bigint }
  | { kind: "stream"; owner: number; raw: bigint }
  | { kind: "event"; owner: number; raw: bigint }
  | { kind: "module"; owner: number; raw: bigint }
  | { kind: "kernel"; owner: number; raw: bigint }
  | { kind: "graph"; owner: number; raw: bigint; instance: bigint }
  | { kind: "host"; owner: number; memory: Uint8Array; isPinned: boolean }
  | { kind: "pair"; owner: number; raw: bigint; rank: 0 | 1 };

/** CUdevice_attribute values that are read. */
const attributes = { multiprocessorCount: 16, archMajor: 75, archMinor: 76 } as const;

const nonBlockingStream = 1; // CU_STREAM_NON_BLOCKING: never waits for the engine's default stream.
const lazyPeerAccess = 1; // CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag that the call accepts.
const captureThisThread = 1; // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
const portablePinning = 1; // CU_MEMHOSTREGISTER_PORTABLE
const sharedBytesAttribute = 8; // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
const pollPauseMs = 0.05; // A poll costs 1.3 us and a copy takes milliseconds.

export class CudaCore {
  readonly #handles = new HandleTable<Entry>();
  readonly #sleeper = new Int32Array(new SharedArrayBuffer(4));
  #opened: { readonly cuda: Libcuda; readonly commands: CudaCommands } | null = null;
  readonly #ncclLibrary: string;
  #memoryUse: MemoryUse | null = null;
  #nccl: Nccl | null = null;
  #nextLook: Promise<void> | null = null;
  #current: number | null = null;

  /** @param ncclLibrary a path, or a name that the system's loader finds */
  constructor(ncclLibrary: string) {
    this.#ncclLibrary = ncclLibrary;
  }

  get #cuda(): Libcuda {
    return this.#open().cuda;
  }

  get #commands(): CudaCommands {
    return this.#open().commands;
  }

  devices(): GpuDevice[] {
    const count = this.#cuda.out32("cuDeviceGetCount");
    return Array.from({ length: count }, (_, ordinal) => this.#describe(ordinal));
  }

  openContext(ordinal: number): GpuContext {
    const { uuid } = this.#describe(ordinal);
    this.#memoryUse ??= openMemoryUse();
    const before = this.#memoryUse(uuid);
    const device = this.#cuda.out32("cuDeviceGet", ordinal);
    const raw = this.#cuda.out64("cuDevicePrimaryCtxRetain", device);
    const handle = this.#handles.add({ kind: "context", owner: null, ordinal, device, raw });
    this.#use(handle);
    const after = this.#memoryUse(uuid);
    const costBytes = before === null || after === null ? null : Math.max(0, after - before);
    return { handle, ordinal, costBytes };
  }

  room(context: ContextHandle): { freeBytes: number; totalBytes: number } {
    this.#use(context);
    const total = new BigUint64Array(1);
    const free = this.#cuda.out64("cuMemGetInfo_v2", total);
    return { freeBytes: Number(free), totalBytes: Number(total[0] ?? 0n) };
  }

  allocate(context: ContextHandle, want: { bytes: number; sharing: Sharing }): GpuMemory {
    const { device } = this.#use(context);
    if (want.sharing === "descriptor") {
      const mapping = createMapping(this.#cuda, device, want.bytes);
      return this.#hold(context, mapping.address, want.bytes, { how: "mapped", mapping });
    }
    const address = this.#cuda.out64("cuMemAlloc_v2", want.bytes);
    const held = { how: "allocated", exportable: want.sharing === "ipc" } as const;
    return this.#hold(context, address, want.bytes, held);
  }

  exportMemory(memory: MemoryId): MemoryHandle {
    const { owner, address, bytes, held } = this.#handles.get(memory, "memory");
    this.#use(owner as ContextHandle);
    if (held.how === "mapped") {
      return { kind: "descriptor", pieces: exportMapping(this.#cuda, held.mapping) };
    }
    if (held.how === "opened" || !held.exportable) {
      throw new RelightError(
        "request_invalid",
        `Cannot export memory ${memory}: it is ${held.how}, wanted sharing "ipc" or "descriptor"`,
      );
    }
    const handle = new Uint8Array(64);
    this.#cuda.call("cuIpcGetMemHandle", handle, address);
    return { kind: "ipc", handle, bytes };
  }

  importMemory(context: ContextHandle, handle: MemoryHandle): GpuMemory {
    const { device } = this.#use(context);
    if (handle.kind === "descriptor") {
      const mapping = importMapping(this.#cuda, device, handle.pieces);
      return this.#hold(context, mapping.address, mapping.mappedBytes, { how: "mapped", mapping });
    }
    const reserved = Uint8Array.from(handle.handle);
    const address = this.#cuda.out64("cuIpcOpenMemHandle_v2", { reserved }, lazyPeerAccess);
    return this.#hold(context, address, handle.bytes, { how: "opened" });
  }

  reserveSlots(context: ContextHandle, want: { count: number; slotBytes: number }): GpuSlots {
    const { device } = this.#use(context);
    const range = reserveSlots(this.#cuda, device, want);
    const id = this.#handles.add({ kind: "slots", owner: context, range });
    const { slotBytes } = range;
    return { id, address: range.address as DevicePtr, count: want.count, slotBytes };
  }

  async fillSlot(slots: SlotsHandle, index: number, handle: MemoryHandle): Promise<void> {
    const { owner, range } = this.#handles.get(slots, "slots");
    this.#use(owner as ContextHandle);
    if (handle.kind !== "descriptor") {
      throw new RelightError("request_invalid", "Cannot map an ipc handle into a slot");
    }
    await this.#inTurns(slots, fillSlot(this.#cuda, range, index, handle.pieces));
  }

  async emptySlot(slots: SlotsHandle, index: number): Promise<void> {
    const { owner, range } = this.#handles.get(slots, "slots");
    this.#use(owner as ContextHandle);
    await this.#inTurns(slots, emptySlot(this.#cuda, range, index));
  }

  /** Launches of others go between two calls. They may make another context current, or close the slots. */
  async #inTurns(slots: SlotsHandle, calls: Generator<void>): Promise<void> {
    while (calls.next().done !== true) {
      await nextTurn();
      this.#use(this.#handles.get(slots, "slots").owner as ContextHandle);
    }
  }

  openBlas(context: ContextHandle, file: string | null): BlasHandle {
    this.#use(context);
    const blas = Blas.open(file);
    const workspace = this.#cuda.out64("cuMemAlloc_v2", blasWorkspaceBytes);
    const raw = blas.create();
    return this.#handles.add({ kind: "blas", owner: context, blas, raw, workspace });
  }

  reachPeer(context: ContextHandle, peer: ContextHandle): boolean {
    const other = this.#handles.get(peer, "context");
    const { device } = this.#use(context);
    if (this.#cuda.out32("cuDeviceCanAccessPeer", device, other.device) === 0) return false;
    const result = this.#cuda.result("cuCtxEnablePeerAccess", other.raw, 0);
    if (result !== cudaSuccess && result !== cudaPeerAlreadyEnabled) {
      throw cudaError("cuCtxEnablePeerAccess", result);
    }
    return true;
  }

  openStream(context: ContextHandle): StreamHandle {
    this.#use(context);
    const raw = this.#cuda.out64("cuStreamCreate", nonBlockingStream);
    return this.#handles.add({ kind: "stream", owner: context, raw });
  }

  openEvent(context: ContextHandle): EventHandle {
    this.#use(context);
    const raw = this.#cuda.out64("cuEventCreate", 0);
    return this.#handles.add({ kind: "event", owner: context, raw });
  }

  elapsedMs(from: EventHandle, to: EventHandle): number {
    const [first, second] = [this.#handles.get(from, "event"), this.#handles.get(to, "event")];
    this.#use(first.owner as ContextHandle);
    const ms = new Float32Array(1);
    this.#cuda.call("cuEventElapsedTime", ms, first.raw, second.raw);
    return ms[0] ?? 0;
  }

  submit(stream: StreamHandle, commands: readonly PackedCommand[]): void {
    const { owner, raw } = this.#handles.get(stream, "stream");
    this.#use(owner as ContextHandle);
    for (const command of commands) this.#commands.enqueue(raw, command);
  }

  async finish(stream: StreamHandle, wait: Wait): Promise<void> {
    await this.#poll(this.#handles.get(stream, "stream"), "cuStreamQuery", wait);
  }

  async reach(event: EventHandle, wait: Wait): Promise<void> {
    await this.#poll(this.#handles.get(event, "event"), "cuEventQuery", wait);
  }

  /** Unpinned memory works all the same: the driver then copies through memory of its own. */
  shareHost(context: ContextHandle, memory: Uint8Array) {
    this.#use(context);
    const pinning = this.#cuda.result(
      "cuMemHostRegister_v2",
      memory,
      memory.byteLength,
      portablePinning,
    );
    const isPinned = pinning === cudaSuccess;
    const handle = this.#handles.add({ kind: "host", owner: context, memory, isPinned });
    return { handle, isPinned };
  }

  pairId(): Uint8Array {
    return this.#openNccl().id();
  }

  async openPair(
    context: ContextHandle,
    meeting: { readonly id: Uint8Array; readonly rank: 0 | 1 },
    wait: Wait,
  ): Promise<PairHandle> {
    const nccl = this.#openNccl();
    this.#use(context);
    const raw = nccl.begin(meeting);
    const pair = this.#handles.add({ kind: "pair", owner: context, raw, rank: meeting.rank });
    try {
      await settle(nccl, raw, { wait, pause: this.#pause });
      return pair;
    } catch (error) {
      this.close(pair);
      throw error;
    }
  }

  async exchange(
    stream: StreamHandle,
    pair: PairHandle,
    { moves, wait }: { readonly moves: readonly PairMove[]; readonly wait: Wait },
  ): Promise<void> {
    const nccl = this.#openNccl();
    const { owner, raw, rank } = this.#handles.get(pair, "pair");
    this.#use(owner as ContextHandle);
    const peer = rank === 0 ? 1 : 0;
    nccl.enqueue(raw, { moves, peer, stream: this.#handles.get(stream, "stream").raw });
    await settle(nccl, raw, { wait, pause: this.#pause });
  }

  async read(
    stream: StreamHandle,
    from: { address: DevicePtr; bytes: number },
    wait: Wait,
  ): Promise<Uint8Array> {
    if (from.bytes > readBytesMax) {
      throw new RelightError(
        "request_invalid",
        `Cannot read ${from.bytes} bytes of the GPU at once: at most ${readBytesMax}`,
      );
    }
    await this.finish(stream, wait);
    const bytes = new Uint8Array(from.bytes);
    if (from.bytes > 0) this.#cuda.call("cuMemcpyDtoH_v2", bytes, from.address, from.bytes);
    return bytes;
  }

  loadModule(context: ContextHandle, image: Uint8Array): ModuleHandle {
    this.#use(context);
    // PTX is text and must end in a zero; a cubin states its own length and ignores what follows.
    const ended = new Uint8Array(image.byteLength + 1);
    ended.set(image);
    const raw = this.#cuda.out64("cuModuleLoadData", ended);
    return this.#handles.add({ kind: "module", owner: context, raw });
  }

  kernel(module: ModuleHandle, name: string, sharedBytesMax: number): KernelHandle {
    const held = this.#handles.get(module, "module");
    this.#use(held.owner as ContextHandle);
    const raw = this.#cuda.out64("cuModuleGetFunction", held.raw, name);
    if (sharedBytesMax > 0) {
      this.#cuda.call("cuFuncSetAttribute", raw, sharedBytesAttribute, sharedBytesMax);
    }
    return this.#handles.add({ kind: "kernel", owner: module, raw });
  }

  capture(stream: StreamHandle, commands: readonly Command[]): GraphHandle {
    const { owner, raw } = this.#handles.get(stream, "stream");
    this.#use(owner as ContextHandle);
    const graph = this.#record(raw, commands);
    try {
      const instance = this.#cuda.out64("cuGraphInstantiateWithFlags", graph, 0);
      return this.#handles.add({ kind: "graph", owner, raw: graph, instance });
    } catch (error) {
      this.#cuda.result("cuGraphDestroy", graph);
      throw error;
    }
  }

  close(handle: Handle<string>): void {
    const entries = this.#handles.take(handle);
    const context = this.#contextOf(entries, handle);
    if (context !== null) this.#cuda.result("cuCtxSetCurrent", context);
    for (const entry of entries) this.#release(entry);
    this.#current = null;
  }

  closeAll(): void {
    for (const handle of this.#handles.all()) this.close(handle as Handle<string>);
  }

  #openNccl(): Nccl {
    this.#nccl ??= Nccl.open(this.#ncclLibrary);
    return this.#nccl;
  }

  async #poll(
    { owner, raw }: { readonly owner: number; readonly raw: bigint },
    query: "cuStreamQuery" | "cuEventQuery",
    wait: Wait,
  ): Promise<void> {
    const deadline = performance.now() + wait.deadlineMs;
    for (;;) {
      this.#use(owner as ContextHandle);
      const result = this.#cuda.result(query, raw);
      if (result === cudaSuccess) return;
      if (result !== cudaNotReady) throw cudaError(query, result);
      checkWait(wait, deadline);
      await this.#pause();
    }
  }

  /** Sleeps shorter than a timer can, once for all who wait; the turn lets other requests in. */
  readonly #pause = (): Promise<void> => {
    this.#nextLook ??= this.#rest();
    return this.#nextLook;
  };

  async #rest(): Promise<void> {
    Atomics.wait(this.#sleeper, 0, 0, pollPauseMs);
    await nextTurn();
    this.#nextLook = null;
  }

  #record(stream: bigint, commands: readonly Command[]): bigint {
    this.#cuda.call("cuStreamBeginCapture_v2", stream, captureThisThread);
    const graph = new BigUint64Array(1);
    try {
      for (const command of commands) this.#commands.enqueue(stream, command);
    } catch (error) {
      // A capture that was begun must be ended, or the stream stays unusable.
      this.#cuda.result("cuStreamEndCapture", stream, graph);
      throw error;
    }
    this.#cuda.call("cuStreamEndCapture", stream, graph);
    return graph[0] ?? 0n;
  }

  #open(): { readonly cuda: Libcuda; readonly commands: CudaCommands } {
    if (this.#opened !== null) return this.#opened;
    const cuda = Libcuda.open();
    const commands = new CudaCommands(cuda, {
      event: (handle) => this.#handles.get(handle, "event").raw,
      graph: (handle) => this.#handles.get(handle, "graph").instance,
      kernel: (handle) => this.#handles.get(handle, "kernel").raw,
      blas: (handle) => this.#handles.get(handle, "blas"),
      host: (handle: HostHandle) => this.#handles.get(handle, "host").memory,
    });
    this.#opened = { cuda, commands };
    return this.#opened;
  }

  #describe(ordinal: number): GpuDevice {
    const count = this.#cuda.out32("cuDeviceGetCount");
    if (!Number.isInteger(ordinal) || ordinal < 0 || ordinal >= count) {
      throw new RelightError(
        "request_invalid",
        `Cannot open GPU ${ordinal}: this process sees ${count}`,
        { details: { ordinal, count } },
      );
    }
    const cuda = this.#cuda;
    const device = cuda.out32("cuDeviceGet", ordinal);
    const attribute = (which: number) => cuda.out32("cuDeviceGetAttribute", which, device);
    const name = new Uint8Array(256);
    cuda.call("cuDeviceGetName", name, name.byteLength, device);
    const uuid = new Uint8Array(16);
    cuda.call("cuDeviceGetUuid_v2", uuid, device);
    return {
      ordinal,
      uuid: formatUuid(uuid),
      name: Buffer.from(name).toString("utf8", 0, name.indexOf(0)),
      arch: 10 * attribute(attributes.archMajor) + attribute(attributes.archMinor),
      memoryBytes: Number(cuda.out64("cuDeviceTotalMem_v2", device)),
      multiprocessorCount: attribute(attributes.multiprocessorCount),
    };
  }

  #use(context: ContextHandle): Extract<Entry, { kind: "context" }> {
    const entry = this.#handles.get(context, "context");
    if (this.#current !== context) {
      this.#cuda.call("cuCtxSetCurrent", entry.raw);
      this.#current = context;
    }
    return entry;
  }

  #hold(context: ContextHandle, address: bigint, bytes: number, held: Held): GpuMemory {
    const id = this.#handles.add({ kind: "memory", owner: context, address, bytes, held });
    return { id, address: address as DevicePtr, bytes };
  }

  #contextOf(entries: readonly Entry[], handle: number): bigint | null {
    const last = entries.at(-1);
    if (last === undefined) return null;
    if (last.kind === "context") return last.raw;
    for (let owner = last.owner; ; ) {
      const entry = this.#handles.peek(owner);
      if (entry === undefined) throw new RelightError("internal", `No owner of handle ${handle}`);
      if (entry.kind === "context") return entry.raw;
      owner = entry.owner;
    }
  }

  /** Results are not checked: what cannot be released on a lost device is gone with it. */
  #release(entry: Entry): void {
    const cuda = this.#cuda;
    switch (entry.kind) {
      case "context":
        cuda.result("cuDevicePrimaryCtxRelease_v2", entry.device);
        return;
      case "memory":
        if (entry.held.how === "mapped") releaseMapping(cuda, entry.held.mapping);
        else if (entry.held.how === "opened") cuda.result("cuIpcCloseMemHandle", entry.address);
        else cuda.result("cuMemFree_v2", entry.address);
        return;
      case "slots":
        releaseSlots(cuda, entry.range);
        return;
      case "blas":
        entry.blas.destroy(entry.raw);
        cuda.result("cuMemFree_v2", entry.workspace);
        return;
      case "stream":
        cuda.result("cuStreamDestroy_v2", entry.raw);
        return;
      case "event":
        cuda.result("cuEventDestroy_v2", entry.raw);
        return;
      case "module":
        cuda.result("cuModuleUnload", entry.raw);
        return;
      case "graph":
        cuda.result("cuGraphExecDestroy", entry.instance);
        cuda.result("cuGraphDestroy", entry.raw);
        return;
      case "host":
        if (entry.isPinned) cuda.result("cuMemHostUnregister", entry.memory);
        return;
      case "pair":
        this.#nccl?.abort(entry.raw);
        return;
      case "kernel":
        return;
    }
  }
}

function formatUuid(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString("hex");
  return `GPU-${hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5")}`;
}
