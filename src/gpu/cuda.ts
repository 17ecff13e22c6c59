// SPDX-License-Identifier: Apache-2.0
// The GPU driver of a real machine, as the event loop sees it: every call is a message to the thread of
// cuda-worker.ts, started at the first call. Nothing here blocks and nothing is loaded before it is used.

import { Worker } from "node:worker_threads";
import { RelightError } from "../errors.ts";
import { workerUrl } from "../platform/worker-url.ts";
import type { CudaCore } from "./cuda-core.ts";
import type { Answer, Operation, Request, Waiting, WorkerData } from "./cuda-worker.ts";
import type {
  Command,
  ContextHandle,
  DevicePtr,
  EventHandle,
  GpuDriver,
  Handle,
  HostMemory,
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
import { sharedHostBytes } from "./host-memory.ts";
import { packCopies } from "./packed-copies.ts";

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: RelightError) => void;
}

type Result<Name extends Operation> = Promise<Awaited<ReturnType<CudaCore[Name]>>>;

export class CudaDriver implements GpuDriver {
  readonly backend = "cuda";
  readonly #pending = new Map<number, Pending>();
  readonly #data: WorkerData;
  #worker: Worker | null = null;
  #next = 1;
  #closed = false;
  #lost: RelightError | null = null;

  /** @param options `ncclLibrary`: where libnccl is, when the system's loader does not find it */
  constructor({ ncclLibrary = "libnccl.so.2" }: { readonly ncclLibrary?: string } = {}) {
    this.#data = { ncclLibrary };
  }

  devices() {
    return this.#call("devices");
  }

  openContext(ordinal: number) {
    return this.#call("openContext", ordinal);
  }

  room(context: ContextHandle) {
    return this.#call("room", context);
  }

  allocate(context: ContextHandle, want: { bytes: number; sharing: Sharing }) {
    return this.#call("allocate", context, want);
  }

  exportMemory(memory: MemoryId) {
    return this.#call("exportMemory", memory);
  }

  importMemory(context: ContextHandle, handle: MemoryHandle) {
    return this.#call("importMemory", context, handle);
  }

  reserveSlots(context: ContextHandle, want: { count: number; slotBytes: number }) {
    return this.#call("reserveSlots", context, want);
  }

  fillSlot(slots: SlotsHandle, index: number, handle: MemoryHandle) {
    return this.#call("fillSlot", slots, index, handle);
  }

  emptySlot(slots: SlotsHandle, index: number) {
    return this.#call("emptySlot", slots, index);
  }

  openBlas(context: ContextHandle, file: string | null) {
    return this.#call("openBlas", context, file);
  }

  reachPeer(context: ContextHandle, peer: ContextHandle) {
    return this.#call("reachPeer", context, peer);
  }

  openStream(context: ContextHandle) {
    return this.#call("openStream", context);
  }

  openEvent(context: ContextHandle) {
    return this.#call("openEvent", context);
  }

  elapsedMs(from: EventHandle, to: EventHandle) {
    return this.#call("elapsedMs", from, to);
  }

  submit(stream: StreamHandle, commands: readonly Command[]) {
    return this.#call("submit", stream, packCopies(commands));
  }

  async finish(stream: StreamHandle, wait: Wait): Promise<void> {
    await this.#wait({ for: "finish", stream }, wait);
  }

  async reach(event: EventHandle, wait: Wait): Promise<void> {
    await this.#wait({ for: "reach", event }, wait);
  }

  async shareHost(context: ContextHandle, bytes: number): Promise<HostMemory> {
    const memory = sharedHostBytes(bytes);
    return { memory, ...(await this.#call("shareHost", context, memory)) };
  }

  pairId() {
    return this.#call("pairId");
  }

  async openPair(
    context: ContextHandle,
    meeting: { readonly id: Uint8Array; readonly rank: 0 | 1 },
    wait: Wait,
  ): Promise<PairHandle> {
    return (await this.#wait({ for: "openPair", context, meeting }, wait)) as PairHandle;
  }

  async exchange(
    stream: StreamHandle,
    pair: PairHandle,
    { moves, wait }: { readonly moves: readonly PairMove[]; readonly wait: Wait },
  ): Promise<void> {
    await this.#wait({ for: "exchange", stream, pair, moves }, wait);
  }

  async read(
    stream: StreamHandle,
    from: { address: DevicePtr; bytes: number },
    wait: Wait,
  ): Promise<Uint8Array> {
    return (await this.#wait({ for: "read", stream, from }, wait)) as Uint8Array;
  }

  loadModule(context: ContextHandle, image: Uint8Array) {
    return this.#call("loadModule", context, image);
  }

  kernel(module: ModuleHandle, name: string, sharedBytesMax: number) {
    return this.#call("kernel", module, name, sharedBytesMax);
  }

  capture(stream: StreamHandle, commands: readonly Command[]) {
    return this.#call("capture", stream, commands);
  }

  close(handle: Handle<string>) {
    return this.#call("close", handle);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const worker = this.#worker;
    if (this.#closed) return;
    if (worker !== null) await this.#call("closeAll");
    this.#closed = true;
    await worker?.terminate();
  }

  #call<Name extends Operation>(
    operation: Name,
    ...args: Parameters<CudaCore[Name]>
  ): Result<Name> {
    return this.#send((id) => ({ id, operation, args })).answer as Result<Name>;
  }

  async #wait(waiting: Waiting, { signal, deadlineMs }: Wait): Promise<unknown> {
    const { id, answer } = this.#send((id) => ({ id, waiting, deadlineMs }));
    const cancel = () => this.#worker?.postMessage({ cancel: id } satisfies Request);
    signal.addEventListener("abort", cancel, { once: true });
    if (signal.aborted) cancel();
    try {
      return await answer;
    } finally {
      signal.removeEventListener("abort", cancel);
    }
  }

  #send(request: (id: number) => Request): { id: number; answer: Promise<unknown> } {
    if (this.#closed) {
      throw new RelightError("handle_closed", "Cannot use the GPU driver: it is closed");
    }
    if (this.#lost !== null) throw this.#lost;
    const id = this.#next++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#pending.set(id, { resolve, reject });
    this.#worker ??= this.#start();
    this.#worker.ref();
    this.#worker.postMessage(request(id));
    return { id, answer: promise };
  }

  #start(): Worker {
    const worker = new Worker(workerUrl(new URL("./cuda-worker.ts", import.meta.url)), {
      workerData: this.#data,
    });
    worker.on("message", (answer: Answer) => this.#settle(answer));
    worker.on("error", (cause) => this.#fail(cause));
    worker.on("exit", (code) => this.#fail(new Error(`The GPU thread ended with ${code}`)));
    return worker;
  }

  #settle(answer: Answer): void {
    const pending = this.#pending.get(answer.id);
    this.#pending.delete(answer.id);
    // An idle driver does not keep the process alive; its memory goes with the process.
    if (this.#pending.size === 0) this.#worker?.unref();
    if ("error" in answer) {
      const { code, message, details } = answer.error;
      pending?.reject(new RelightError(code, message, { details }));
    } else pending?.resolve(answer.value);
  }

  #fail(cause: Error): void {
    const error = new RelightError("device_lost", `Cannot use the GPU: ${cause.message}`, {
      cause,
    });
    this.#lost ??= error;
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }
}
