// SPDX-License-Identifier: Apache-2.0
// A GPU made of host memory and files, held to the same contract as the real one. Streams run after
// `submit` has returned, one command a turn, so that a missing wait shows; `bytesPerSecond` slows copies
// so that a test can act in the middle of one. Kernels are host functions under the names that the
// module's text declares.

import { tmpdir } from "node:os";
import { setImmediate as nextTurn, setTimeout as pause } from "node:timers/promises";
import { asRelightError, InvariantError, RelightError } from "../errors.ts";
import {
  at,
  type BlasHandle,
  type Command,
  type ContextHandle,
  type DevicePtr,
  type Dim3,
  type EventHandle,
  type GpuContext,
  type GpuDevice,
  type GpuDriver,
  type GpuMemory,
  type GpuSlots,
  type GraphHandle,
  type Handle,
  type HostMemory,
  type KernelHandle,
  type KernelParam,
  type MemoryHandle,
  type MemoryId,
  type ModuleHandle,
  type PairHandle,
  type PairMove,
  type Sharing,
  type SlotsHandle,
  type StreamHandle,
  type Wait,
} from "./driver.ts";
import { multiply } from "./fake-gemm.ts";
import { FakeMemory, type FakeRange, type FakeReach, type FakeSlots } from "./fake-memory.ts";
import { FakePair, fakePairId } from "./fake-pair.ts";
import { HandleTable } from "./handles.ts";
import { sharedHostBytes } from "./host-memory.ts";
import { checkWait } from "./wait.ts";

/** One that waits for other processes gives the event loop its turns and ends by itself. */
export type FakeKernel = (
  memory: FakeReach,
  launch: { readonly grid: Dim3; readonly block: Dim3; readonly params: readonly KernelParam[] },
) => void | Promise<void>;

export interface FakeOptions {
  /** Where the memory's files lie; processes that share memory name the same. */
  readonly directory?: string;
  readonly deviceCount?: number;
  readonly memoryBytes?: number;
  /** Infinity for no delay. */
  readonly bytesPerSecond?: number;
  readonly kernels?: Readonly<Record<string, FakeKernel>>;
}

interface Stream {
  readonly queue: Step[];
  running: boolean;
  isClosed: boolean;
  error: RelightError | null;
}

interface EventState {
  /** Records given to streams, and how many of them the streams have come to. */
  recorded: number;
  reached: number;
  reachedAtMs: number | null;
  /** What ended the stream that a record of it stood on. */
  error: RelightError | null;
}

/** What a stream does: a command, a wait that knows which record it waits for, a move of a pair. */
type Step =
  | Exclude<Command, { do: "await" }>
  | { do: "await"; state: EventState; record: number }
  | { do: "move"; pair: PairHandle; move: PairMove };

type Entry =
  | { kind: "context"; owner: null; ordinal: number }
  | { kind: "memory"; owner: number; range: FakeRange; counted: number; exportable: boolean }
  | { kind: "slots"; owner: number; slots: FakeSlots }
  | { kind: "blas"; owner: number }
  | { kind: "stream"; owner: number; stream: Stream }
  | { kind: "event"; owner: number; state: EventState }
  | { kind: "module"; owner: number; names: ReadonlySet<string> }
  | { kind: "kernel"; owner: number; run: FakeKernel }
  | { kind: "graph"; owner: number; commands: readonly Command[] }
  | { kind: "host"; owner: number; memory: Uint8Array }
  | { kind: "pair"; owner: number; pair: FakePair };

const arch = 90;
const contextCostBytes = 2 ** 20;
const copyStepBytes = 4 * 2 ** 20;

export class FakeDriver implements GpuDriver {
  readonly backend = "fake";
  readonly #handles = new HandleTable<Entry>();
  readonly #memory: FakeMemory;
  readonly #options: Required<FakeOptions>;

  constructor(options: FakeOptions = {}) {
    this.#options = {
      directory: tmpdir(),
      deviceCount: 2,
      memoryBytes: 2 ** 30,
      bytesPerSecond: Number.POSITIVE_INFINITY,
      kernels: {},
      ...options,
    };
    this.#memory = new FakeMemory(this.#options.directory);
  }

  async devices(): Promise<readonly GpuDevice[]> {
    return Array.from({ length: this.#options.deviceCount }, (_, ordinal) => ({
      ordinal,
      uuid: `GPU-00000000-0000-0000-0000-${ordinal.toString().padStart(12, "0")}`,
      name: "Fake GPU",
      arch,
      memoryBytes: this.#options.memoryBytes,
      multiprocessorCount: 4,
    }));
  }

  async openContext(ordinal: number): Promise<GpuContext> {
    const count = this.#options.deviceCount;
    if (!Number.isInteger(ordinal) || ordinal < 0 || ordinal >= count) {
      throw new RelightError(
        "request_invalid",
        `Cannot open GPU ${ordinal}: this process sees ${count}`,
      );
    }
    const handle = this.#handles.add({ kind: "context", owner: null, ordinal });
    return { handle, ordinal, costBytes: contextCostBytes };
  }

  async room(context: ContextHandle) {
    const { ordinal } = this.#handles.get(context, "context");
    const totalBytes = this.#options.memoryBytes;
    return { freeBytes: totalBytes - this.#usedBytes(ordinal), totalBytes };
  }

  async allocate(
    context: ContextHandle,
    want: { bytes: number; sharing: Sharing },
  ): Promise<GpuMemory> {
    const { freeBytes } = await this.room(context);
    if (want.bytes <= 0) {
      throw new RelightError("device_failed", `Cannot allocate ${want.bytes} bytes of the GPU`);
    }
    if (want.bytes > freeBytes) {
      throw new RelightError(
        "device_memory",
        `Cannot allocate ${want.bytes} bytes of the GPU: ${freeBytes} are free`,
      );
    }
    const range = this.#memory.create(want.bytes, want.sharing);
    return this.#hold(context, range, want.bytes, want.sharing !== "private");
  }

  async exportMemory(memory: MemoryId): Promise<MemoryHandle> {
    const { range, exportable } = this.#handles.get(memory, "memory");
    if (!exportable) {
      throw new RelightError(
        "request_invalid",
        `Cannot export memory ${memory}: it is private, wanted sharing "ipc" or "descriptor"`,
      );
    }
    return this.#memory.export(range);
  }

  async importMemory(context: ContextHandle, handle: MemoryHandle): Promise<GpuMemory> {
    this.#handles.get(context, "context");
    return this.#hold(context, this.#memory.import(handle), 0, handle.kind === "descriptor");
  }

  async reserveSlots(
    context: ContextHandle,
    { count, slotBytes }: { count: number; slotBytes: number },
  ): Promise<GpuSlots> {
    this.#handles.get(context, "context");
    const slots = this.#memory.reserveSlots(count, slotBytes);
    const id = this.#handles.add({ kind: "slots", owner: context, slots });
    return { id, address: slots.range.base as DevicePtr, count, slotBytes };
  }

  async fillSlot(slots: SlotsHandle, index: number, handle: MemoryHandle): Promise<void> {
    this.#memory.fillSlot(this.#handles.get(slots, "slots").slots, index, handle);
  }

  async emptySlot(slots: SlotsHandle, index: number): Promise<void> {
    this.#memory.emptySlot(this.#handles.get(slots, "slots").slots, index);
  }

  async openBlas(context: ContextHandle, _file: string | null): Promise<BlasHandle> {
    this.#handles.get(context, "context");
    return this.#handles.add({ kind: "blas", owner: context });
  }

  async reachPeer(context: ContextHandle, peer: ContextHandle): Promise<boolean> {
    const [one, other] = [
      this.#handles.get(context, "context"),
      this.#handles.get(peer, "context"),
    ];
    return one.ordinal !== other.ordinal;
  }

  async openStream(context: ContextHandle): Promise<StreamHandle> {
    this.#handles.get(context, "context");
    const stream = { queue: [], running: false, isClosed: false, error: null };
    return this.#handles.add({ kind: "stream", owner: context, stream });
  }

  async openEvent(context: ContextHandle): Promise<EventHandle> {
    this.#handles.get(context, "context");
    const state = { recorded: 0, reached: 0, reachedAtMs: null, error: null };
    return this.#handles.add({ kind: "event", owner: context, state });
  }

  async elapsedMs(from: EventHandle, to: EventHandle): Promise<number> {
    const first = this.#handles.get(from, "event").state.reachedAtMs;
    const second = this.#handles.get(to, "event").state.reachedAtMs;
    if (first === null || second === null) {
      throw new RelightError(
        "device_failed",
        "Cannot tell the time between events: one is not reached",
      );
    }
    return second - first;
  }

  async submit(handle: StreamHandle, commands: readonly Command[]): Promise<void> {
    const { stream } = this.#handles.get(handle, "stream");
    for (const command of commands) this.#enqueue(stream, command);
    if (stream.error !== null) {
      for (const step of stream.queue.splice(0)) this.#failEvent(step, stream.error);
    }
    if (!stream.running) void this.#run(stream);
  }

  async finish(handle: StreamHandle, wait: Wait): Promise<void> {
    const deadline = performance.now() + wait.deadlineMs;
    for (let turns = 0; ; turns += 1) {
      const { stream } = this.#handles.get(handle, "stream");
      if (stream.error !== null) throw stream.error;
      if (!stream.running && stream.queue.length === 0) return;
      checkWait(wait, deadline);
      await (turns < 20 ? nextTurn() : pause(1));
    }
  }

  async reach(event: EventHandle, wait: Wait): Promise<void> {
    const deadline = performance.now() + wait.deadlineMs;
    const { recorded } = this.#handles.get(event, "event").state;
    for (let turns = 0; ; turns += 1) {
      const { state } = this.#handles.get(event, "event");
      if (state.reached >= recorded) return;
      if (state.error !== null) throw state.error;
      checkWait(wait, deadline);
      await (turns < 20 ? nextTurn() : pause(1));
    }
  }

  async shareHost(context: ContextHandle, bytes: number): Promise<HostMemory> {
    this.#handles.get(context, "context");
    const memory = sharedHostBytes(bytes);
    const handle = this.#handles.add({ kind: "host", owner: context, memory });
    return { handle, memory, isPinned: true };
  }

  async pairId(): Promise<Uint8Array> {
    return fakePairId();
  }

  async openPair(
    context: ContextHandle,
    meeting: { readonly id: Uint8Array; readonly rank: 0 | 1 },
    wait: Wait,
  ): Promise<PairHandle> {
    this.#handles.get(context, "context");
    const pair = await FakePair.meet(this.#options.directory, meeting, wait);
    return this.#handles.add({ kind: "pair", owner: context, pair });
  }

  async exchange(
    handle: StreamHandle,
    pair: PairHandle,
    { moves }: { readonly moves: readonly PairMove[]; readonly wait: Wait },
  ): Promise<void> {
    this.#handles.get(pair, "pair");
    const { stream } = this.#handles.get(handle, "stream");
    stream.queue.push(...moves.map((move) => ({ do: "move", pair, move }) as const));
    if (!stream.running) void this.#run(stream);
  }

  async read(stream: StreamHandle, from: { address: DevicePtr; bytes: number }, wait: Wait) {
    await this.finish(stream, wait);
    return new Uint8Array(this.#memory.read(from.address, from.bytes));
  }

  async loadModule(context: ContextHandle, image: Uint8Array): Promise<ModuleHandle> {
    this.#handles.get(context, "context");
    const text = Buffer.from(image).toString("latin1");
    const target = Number(/\.target\s+sm_(\d+)/.exec(text)?.[1]);
    if (!(target <= arch)) {
      throw new RelightError(
        "device_unsupported",
        `Cannot load a module: it is for ${target || "nothing known"}, this GPU is ${arch}`,
      );
    }
    const names = new Set([...text.matchAll(/\.entry\s+(\w+)/g)].map((match) => match[1] ?? ""));
    return this.#handles.add({ kind: "module", owner: context, names });
  }

  async kernel(module: ModuleHandle, name: string, _sharedBytesMax: number): Promise<KernelHandle> {
    const { names } = this.#handles.get(module, "module");
    const run = this.#options.kernels[name];
    if (!names.has(name) || run === undefined) {
      throw new RelightError(
        "device_unsupported",
        `Cannot find the kernel "${name}" in the module`,
      );
    }
    return this.#handles.add({ kind: "kernel", owner: module, run });
  }

  async capture(stream: StreamHandle, commands: readonly Command[]): Promise<GraphHandle> {
    const { owner } = this.#handles.get(stream, "stream");
    return this.#handles.add({ kind: "graph", owner, commands: [...commands] });
  }

  async close(handle: Handle<string>): Promise<void> {
    for (const entry of this.#handles.take(handle)) {
      if (entry.kind === "memory") this.#memory.release(entry.range);
      if (entry.kind === "pair") entry.pair.close();
      if (entry.kind === "slots") this.#memory.releaseSlots(entry.slots);
      if (entry.kind !== "stream") continue;
      entry.stream.isClosed = true;
      entry.stream.queue.length = 0;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const handle of this.#handles.all()) await this.close(handle as Handle<string>);
  }

  #enqueue(stream: Stream, command: Command): void {
    // What a command names is looked up when it is given, as the real driver does.
    if (command.do === "graph") {
      const { commands } = this.#handles.get(command.graph, "graph");
      for (const inner of commands) this.#enqueue(stream, inner);
      return;
    }
    if (command.do === "launch") this.#handles.get(command.kernel, "kernel");
    if (command.do === "gemm") this.#handles.get(command.blas, "blas");
    if (command.do === "from_host" || command.do === "to_host") this.#hostAt(command);
    stream.queue.push(this.#stepOf(command));
  }

  #stepOf(command: Command): Step {
    if (command.do === "upload") return { ...command, bytes: command.bytes.slice() };
    if (command.do !== "record" && command.do !== "await") return command;
    const { state } = this.#handles.get(command.event, "event");
    // An event may be recorded again before a wait for its earlier record is over.
    if (command.do === "await") return { do: "await", state, record: state.recorded };
    state.recorded += 1;
    return command;
  }

  async #run(stream: Stream): Promise<void> {
    stream.running = true;
    try {
      for (;;) {
        await nextTurn();
        const command = stream.queue.shift();
        if (command === undefined) return;
        await this.#execute(command, stream);
      }
    } catch (cause) {
      const error = asRelightError(cause);
      stream.error = error;
      for (const step of stream.queue.splice(0)) {
        this.#failEvent(step, error);
      }
    } finally {
      stream.running = false;
    }
  }

  async #execute(command: Step, stream: Stream): Promise<void> {
    switch (command.do) {
      case "copy":
        await this.#copy(command.to, command.from, command.bytes);
        break;
      case "copy_rows":
        for (let row = 0; row < command.rows; row += 1) {
          const to = at(command.to, row * command.toPitchBytes);
          await this.#copy(to, at(command.from, row * command.fromPitchBytes), command.rowBytes);
        }
        break;
      case "fill":
        this.#memory.write(command.to, Buffer.alloc(command.bytes, command.byte));
        break;
      case "upload":
        this.#memory.write(command.to, command.bytes);
        break;
      case "from_host":
        await this.#delay(command.bytes);
        this.#memory.write(command.to, this.#hostAt(command));
        break;
      case "to_host":
        await this.#delay(command.bytes);
        this.#hostAt(command).set(this.#memory.read(command.from, command.bytes));
        break;
      case "move":
        await this.#move(command, stream);
        break;
      case "record": {
        const { state } = this.#handles.get(command.event, "event");
        state.reached += 1;
        state.reachedAtMs = performance.now();
        break;
      }
      case "await":
        // What it waits for may have been dropped with another stream.
        while (command.state.reached < command.record && !stream.isClosed) {
          if (command.state.error !== null) throw command.state.error;
          await pause(1);
        }
        break;
      case "gemm":
        multiply(this.#memory, command);
        break;
      case "launch":
        await this.#handles.get(command.kernel, "kernel").run(this.#memory, command);
        break;
      case "graph":
        throw new InvariantError("a graph was taken apart as it was submitted");
    }
  }

  async #copy(to: DevicePtr, from: DevicePtr, bytes: number): Promise<void> {
    for (let done = 0; done < bytes; done += copyStepBytes) {
      const step = Math.min(copyStepBytes, bytes - done);
      this.#memory.write(at(to, done), this.#memory.read(at(from, done), step));
      await this.#delay(step);
    }
  }

  /** Whoever waits for a record that will not come hears why. */
  #failEvent(step: Step, error: RelightError): void {
    const event = step.do === "record" ? this.#handles.peek(step.event) : undefined;
    if (event?.kind === "event") event.state.error = error;
  }

  async #delay(bytes: number): Promise<void> {
    const delayMs = (bytes / this.#options.bytesPerSecond) * 1_000;
    if (delayMs > 0) await pause(delayMs);
  }

  async #move({ pair, move }: Extract<Step, { do: "move" }>, stream: Stream): Promise<void> {
    const { pair: end } = this.#handles.get(pair, "pair");
    if (move.do === "send") {
      await this.#delay(move.bytes);
      end.send(this.#memory.read(move.address, move.bytes));
      return;
    }
    for (let taken = end.take(move.bytes); !stream.isClosed; taken = end.take(move.bytes)) {
      if (taken !== null) {
        await this.#delay(move.bytes);
        this.#memory.write(move.address, taken);
        return;
      }
      // A pair that is closed at this end waits for nothing any more.
      this.#handles.get(pair, "pair");
      await pause(1);
    }
  }

  #hostAt({ host, offsetBytes, bytes }: Extract<Command, { do: "from_host" | "to_host" }>) {
    const { memory } = this.#handles.get(host, "host");
    if (offsetBytes >= 0 && offsetBytes + bytes <= memory.byteLength) {
      return memory.subarray(offsetBytes, offsetBytes + bytes);
    }
    throw new RelightError(
      "request_invalid",
      `Cannot copy ${bytes} bytes at ${offsetBytes} of host memory: it has ${memory.byteLength}`,
    );
  }

  #hold(context: ContextHandle, range: FakeRange, counted: number, exportable: boolean): GpuMemory {
    const id = this.#handles.add({ kind: "memory", owner: context, range, counted, exportable });
    return { id, address: range.base as DevicePtr, bytes: range.bytes };
  }

  #usedBytes(ordinal: number): number {
    let used = 0;
    for (const handle of this.#handles.all()) {
      const entry = this.#handles.peek(handle);
      if (entry?.kind !== "memory") continue;
      const context = this.#handles.peek(entry.owner);
      if (context?.kind === "context" && context.ordinal === ordinal) used += entry.counted;
    }
    return used;
  }
}
