// SPDX-License-Identifier: Apache-2.0
// What every GPU backend does: contexts, memory, sharing between processes, streams, kernels, graphs.
// The contract is asynchronous and takes whole lists of commands, because a driver call may block and
// therefore runs on a thread of its own, and a list costs one hop to it. test/contracts/gpu.ts holds
// every backend to the sentences written here. Domain folders import this file and no other of gpu/.

declare const brand: unique symbol;
type Branded<Value, Name extends string> = Value & { readonly [brand]: Name };

/** An address on a GPU, valid in the process that got it. A host address does not type-check here. */
export type DevicePtr = Branded<bigint, "DevicePtr">;

/** A thing that a driver opened. Closed once; used after that it is `handle_closed`, not a crash. */
export type Handle<Kind extends string> = Branded<number, Kind>;
export type ContextHandle = Handle<"context">;
export type MemoryId = Handle<"memory">;
export type StreamHandle = Handle<"stream">;
export type EventHandle = Handle<"event">;
export type ModuleHandle = Handle<"module">;
export type KernelHandle = Handle<"kernel">;
export type GraphHandle = Handle<"graph">;
export type HostHandle = Handle<"host">;
/** One end of a pair of GPUs that send to one another, on this or on two machines. */
export type PairHandle = Handle<"pair">;
export type SlotsHandle = Handle<"slots">;
export type BlasHandle = Handle<"blas">;

export interface GpuDevice {
  readonly ordinal: number;
  /** `GPU-` and a UUID: the same in every process of the machine, whatever CUDA_VISIBLE_DEVICES says. */
  readonly uuid: string;
  readonly name: string;
  /** Compute capability times ten: 90 for Hopper. */
  readonly arch: number;
  readonly memoryBytes: number;
  readonly multiprocessorCount: number;
}

export interface GpuContext {
  readonly handle: ContextHandle;
  readonly ordinal: number;
  /** What opening it took from the GPU's memory; `null` when it could not be read. */
  readonly costBytes: number | null;
}

/** Memory of this process that the GPU copies to and from while the CPU does something else. */
export interface HostMemory {
  readonly handle: HostHandle;
  /** Begins at a page; goes when the handle is closed and nobody holds it. */
  readonly memory: Uint8Array<SharedArrayBuffer>;
  /** False where the system would not pin it: then copies are slower and wait for one another. */
  readonly isPinned: boolean;
}

/** What one end of a pair does; the other does the opposite, with as many bytes, in the same order. */
export interface PairMove {
  readonly do: "send" | "receive";
  readonly address: DevicePtr;
  readonly bytes: number;
}

/** `private` cannot be exported; `ipc` and `descriptor` say by which handle another process opens it. */
export type Sharing = "private" | "ipc" | "descriptor";

export interface GpuMemory {
  readonly id: MemoryId;
  readonly address: DevicePtr;
  /** What was asked for; the driver may have reserved more. */
  readonly bytes: number;
}

/** One allocation as another process opens it. */
export type MemoryHandle =
  | {
      readonly kind: "ipc";
      /** 64 opaque bytes of the driver. */
      readonly handle: Uint8Array;
      readonly bytes: number;
    }
  | {
      readonly kind: "descriptor";
      /** Open files of this process, mapped one behind the other. The receiver closes them. */
      readonly pieces: readonly { readonly descriptor: number; readonly bytes: number }[];
    };

/**
 * Places of equal size behind each other, for memory of other processes that comes and goes. An address
 * in a slot never changes and is always mapped: an empty slot is a sink, where stores end and loads mean
 * nothing.
 */
export interface GpuSlots {
  readonly id: SlotsHandle;
  readonly address: DevicePtr;
  readonly count: number;
  /** From one slot to the next: at least what was asked for. */
  readonly slotBytes: number;
}

export type Dim3 = readonly [number, number, number];

/** One argument of a kernel, as wide as the kernel declares it. `struct` is passed by value. */
export type KernelParam =
  | { readonly u32: number }
  | { readonly i32: number }
  | { readonly f32: number }
  | { readonly u64: bigint }
  | { readonly struct: Uint8Array };

export type Command =
  | {
      readonly do: "copy";
      readonly to: DevicePtr;
      readonly from: DevicePtr;
      readonly bytes: number;
    }
  | {
      readonly do: "copy_rows";
      readonly to: DevicePtr;
      readonly from: DevicePtr;
      readonly rowBytes: number;
      readonly rows: number;
      readonly toPitchBytes: number;
      readonly fromPitchBytes: number;
    }
  | { readonly do: "fill"; readonly to: DevicePtr; readonly byte: number; readonly bytes: number }
  /** The bytes are taken at the call; the caller may reuse its array. */
  | { readonly do: "upload"; readonly to: DevicePtr; readonly bytes: Uint8Array }
  /** Shared host memory is read and written when the stream comes to it. */
  | {
      readonly do: "from_host";
      readonly to: DevicePtr;
      readonly host: HostHandle;
      readonly offsetBytes: number;
      readonly bytes: number;
    }
  | {
      readonly do: "to_host";
      readonly host: HostHandle;
      readonly offsetBytes: number;
      readonly from: DevicePtr;
      readonly bytes: number;
    }
  | { readonly do: "record"; readonly event: EventHandle }
  | { readonly do: "await"; readonly event: EventHandle }
  | {
      readonly do: "launch";
      readonly kernel: KernelHandle;
      readonly grid: Dim3;
      readonly block: Dim3;
      readonly sharedBytes: number;
      readonly cooperative: boolean;
      readonly params: readonly KernelParam[];
    }
  | { readonly do: "graph"; readonly graph: GraphHandle }
  /**
   * out[b] = x[b] * weights[b]^T for each b of a batch: bf16 matrices with rows one behind the other, x of
   * `rows` by `depth`, weights of `columns` by `depth`. Strides are in elements; 0 uses one for all.
   */
  | {
      readonly do: "gemm";
      readonly blas: BlasHandle;
      readonly x: DevicePtr;
      readonly weights: DevicePtr;
      readonly out: DevicePtr;
      readonly outType: "bf16" | "f32";
      readonly batch: number;
      readonly rows: number;
      readonly columns: number;
      readonly depth: number;
      readonly xStride: number;
      readonly weightsStride: number;
      readonly outStride: number;
    };

export interface Wait {
  readonly signal: AbortSignal;
  readonly deadlineMs: number;
}

export const readBytesMax = 256 * 2 ** 20;

/**
 * One process's way to its GPUs. Calls may overlap; commands of one stream run in the order of their
 * `submit` calls. Nothing touches the driver before the first call, which throws `device_absent` on a
 * machine without one. After a failure every handle can still be closed. `device_lost` is final.
 */
export interface GpuDriver extends AsyncDisposable {
  readonly backend: "cuda" | "fake";

  devices(): Promise<readonly GpuDevice[]>;

  /** Retains the device's primary context, the one that the frameworks of this process share. */
  openContext(ordinal: number): Promise<GpuContext>;

  room(
    context: ContextHandle,
  ): Promise<{ readonly freeBytes: number; readonly totalBytes: number }>;

  /** @throws device_memory when the GPU has no room. */
  allocate(
    context: ContextHandle,
    want: { readonly bytes: number; readonly sharing: Sharing },
  ): Promise<GpuMemory>;

  /** A handle for another process. `descriptor` handles hold open files that the caller closes. */
  exportMemory(memory: MemoryId): Promise<MemoryHandle>;

  /**
   * Maps memory of another process. Descriptors stay the caller's to close.
   * @throws device_handle_invalid when the exporter is gone or the bytes are no handle.
   */
  importMemory(context: ContextHandle, handle: MemoryHandle): Promise<GpuMemory>;

  reserveSlots(
    context: ContextHandle,
    want: { readonly count: number; readonly slotBytes: number },
  ): Promise<GpuSlots>;

  /**
   * Maps memory of another process into an empty slot. Descriptors stay the caller's to close. Other
   * slots stay reachable meanwhile, also for kernels that run.
   * @throws device_handle_invalid, request_invalid (the slot is taken, or the memory too large for it)
   */
  fillSlot(slots: SlotsHandle, index: number, handle: MemoryHandle): Promise<void>;

  /** Makes a slot a sink again. What may still reach into it must be done. Emptying twice is nothing. */
  emptySlot(slots: SlotsHandle, index: number): Promise<void>;

  /**
   * Matrix products of this context, for one stream at a time.
   * @param file cuBLAS's library; null: by its usual names
   * @throws device_unsupported without it
   */
  openBlas(context: ContextHandle, file: string | null): Promise<BlasHandle>;

  /** Lets kernels of `context` reach memory of another device of this process. False: no such link. */
  reachPeer(context: ContextHandle, peer: ContextHandle): Promise<boolean>;

  openStream(context: ContextHandle): Promise<StreamHandle>;
  openEvent(context: ContextHandle): Promise<EventHandle>;
  /** Milliseconds of GPU time between two recorded and reached events. */
  elapsedMs(from: EventHandle, to: EventHandle): Promise<number>;

  /** Enqueues all commands, in order; resolves when they are enqueued, not when they are done. */
  submit(stream: StreamHandle, commands: readonly Command[]): Promise<void>;

  /**
   * Resolves when everything submitted to the stream is done.
   * @throws deadline_exceeded, cancelled: the commands stay enqueued and may still run.
   */
  finish(stream: StreamHandle, wait: Wait): Promise<void>;

  /**
   * Resolves when the GPU has come to the last record of the event that was submitted before.
   * @throws deadline_exceeded, cancelled
   */
  reach(event: EventHandle, wait: Wait): Promise<void>;

  /** Memory of this process, shared between its threads, that the GPU copies to and from. */
  shareHost(context: ContextHandle, bytes: number): Promise<HostMemory>;

  /** What two ends need to find one another: 128 bytes. @throws device_unsupported without NCCL */
  pairId(): Promise<Uint8Array>;

  /**
   * Meets the other end, which calls this with the same id and the other rank.
   * @throws device_unsupported without NCCL, transport_unavailable for two ends on one GPU,
   *   deadline_exceeded when the other does not come, source_unreachable
   */
  openPair(
    context: ContextHandle,
    meeting: { readonly id: Uint8Array; readonly rank: 0 | 1 },
    wait: Wait,
  ): Promise<PairHandle>;

  /**
   * Resolves when the moves are enqueued on the stream, for which the other end may have to have enqueued
   * its own. After a failure the pair is of no more use; closing it ends what is under way.
   * @throws deadline_exceeded, cancelled, source_unreachable (the other end is gone)
   */
  exchange(
    stream: StreamHandle,
    pair: PairHandle,
    what: { readonly moves: readonly PairMove[]; readonly wait: Wait },
  ): Promise<void>;

  /** Bytes of the GPU as they are after everything submitted to the stream. */
  read(
    stream: StreamHandle,
    from: { readonly address: DevicePtr; readonly bytes: number },
    wait: Wait,
  ): Promise<Uint8Array>;

  /** @throws device_unsupported when the image (cubin, fatbin or PTX text) is not for this GPU. */
  loadModule(context: ContextHandle, image: Uint8Array): Promise<ModuleHandle>;
  /** @throws device_unsupported when the module has no such kernel. */
  kernel(module: ModuleHandle, name: string, sharedBytesMax: number): Promise<KernelHandle>;

  /** Records the commands once; `{ do: "graph" }` replays them with one call. */
  capture(stream: StreamHandle, commands: readonly Command[]): Promise<GraphHandle>;

  /** Closes any handle. A context closes everything that was opened in it. Closing twice is nothing. */
  close(handle: Handle<string>): Promise<void>;
}

/** The only way to make an address: add to one that the driver gave. */
export function at(address: DevicePtr, offsetBytes: number): DevicePtr {
  return (address + BigInt(offsetBytes)) as DevicePtr;
}
