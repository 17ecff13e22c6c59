// SPDX-License-Identifier: Apache-2.0
// An engine as the weights code sees it: tensors of every awkward kind in GPU memory of its own process,
// handed over by handle. Values come from a salt, so that any process can tell what should be there.

import { createHash } from "node:crypto";
import {
  at,
  type GpuDriver,
  type GpuMemory,
  type MemoryHandle,
  type Sharing,
  type StreamHandle,
} from "../../src/gpu/driver.ts";
import type { Coordinate } from "../../src/weights/coordinate.ts";
import type { WeightLayout } from "../../src/weights/manifest.ts";
import { rowBlocks, spanBytes, type Tensor } from "../../src/weights/tensor.ts";

export type TensorSpec = Omit<Tensor, "allocation" | "offsetBytes" | "kind"> & {
  readonly kind?: Tensor["kind"];
  /** Lies where this tensor lies, or behind it by so many bytes. */
  readonly at?: { readonly tensor: string; readonly offsetBytes: number };
};

/** Each is a kind of tensor that somebody has transferred wrongly. */
export const oddTensors: readonly TensorSpec[] = [
  { name: "embed", dtype: "bfloat16", shape: [64, 32], stride: [32, 1] },
  // Tied: another name for the same memory.
  {
    name: "lm_head",
    dtype: "bfloat16",
    shape: [64, 32],
    stride: [32, 1],
    at: { tensor: "embed", offsetBytes: 0 },
  },
  { name: "norm", dtype: "float32", shape: [7], stride: [1] },
  { name: "nothing", dtype: "bfloat16", shape: [0, 128], stride: [128, 1] },
  { name: "step", dtype: "int64", shape: [], stride: [], kind: "buffer" },
  // Rows of 30 in a pitch of 40: the ten between are padding.
  { name: "padded", dtype: "float8_e4m3fn", shape: [9, 30], stride: [40, 1] },
  { name: "transposed", dtype: "float16", shape: [12, 20], stride: [1, 12] },
  { name: "expanded", dtype: "float32", shape: [5, 8], stride: [0, 1] },
  { name: "sliced", dtype: "bfloat16", shape: [3, 4, 6], stride: [100, 10, 1] },
  { name: "w_uk_t", dtype: "bfloat16", shape: [4, 16, 8], stride: [128, 1, 16], kind: "derived" },
  { name: "scale", dtype: "float8_e8m0fnu", shape: [33], stride: [1], kind: "derived" },
  // Begins at an odd byte behind the scale.
  {
    name: "crooked",
    dtype: "uint8",
    shape: [1_001],
    stride: [1],
    at: { tensor: "scale", offsetBytes: 33 },
  },
  { name: "gate_up", dtype: "bfloat16", shape: [512, 300], stride: [300, 1] },
  { name: "down", dtype: "bfloat16", shape: [300, 256], stride: [256, 1] },
];

export interface EngineOptions {
  readonly driver: GpuDriver;
  readonly ordinal: number;
  readonly sharing: Exclude<Sharing, "private">;
  readonly tensors: readonly TensorSpec[];
  /** Tensors are dealt out over so many allocations. */
  readonly allocationCount: number;
  /** Lays tensors out in the opposite order, as a differently built engine does. */
  readonly isReversed: boolean;
  readonly coordinate?: Partial<Coordinate>;
}

const one = { rank: 0, size: 1 };
const roundingBytes = 512;
const wait = () => ({ signal: AbortSignal.timeout(60_000), deadlineMs: 30_000 });

export class TestEngine {
  readonly layout: WeightLayout;
  readonly handles: readonly MemoryHandle[];
  readonly deviceUuid: string;
  readonly #driver: GpuDriver;
  readonly #stream: StreamHandle;
  readonly #memory: readonly GpuMemory[];

  private constructor(fields: {
    driver: GpuDriver;
    layout: WeightLayout;
    handles: readonly MemoryHandle[];
    deviceUuid: string;
    stream: StreamHandle;
    memory: readonly GpuMemory[];
  }) {
    this.layout = fields.layout;
    this.handles = fields.handles;
    this.deviceUuid = fields.deviceUuid;
    this.#driver = fields.driver;
    this.#stream = fields.stream;
    this.#memory = fields.memory;
  }

  static async open(options: EngineOptions): Promise<TestEngine> {
    const { driver, ordinal, sharing } = options;
    const device = (await driver.devices())[ordinal];
    if (device === undefined) throw new Error(`no GPU ${ordinal}`);
    const { handle } = await driver.openContext(ordinal);
    const layout = layOut(options, device.arch);
    const memory: GpuMemory[] = [];
    for (const { bytes } of layout.allocations) {
      memory.push(await driver.allocate(handle, { bytes, sharing }));
    }
    const handles = await Promise.all(memory.map(({ id }) => driver.exportMemory(id)));
    const stream = await driver.openStream(handle);
    return new TestEngine({ driver, layout, handles, deviceUuid: device.uuid, stream, memory });
  }

  /** Every byte of every allocation, and then the tensors' own from the salt. */
  async fill(salt: string): Promise<void> {
    await this.poison();
    for (const tensor of this.layout.tensors) await this.write(tensor.name, salt);
  }

  async poison(): Promise<void> {
    const commands = this.#memory.map(
      ({ address, bytes }) => ({ do: "fill", to: address, byte: 0xee, bytes }) as const,
    );
    await this.#driver.submit(this.#stream, commands);
    await this.#driver.finish(this.#stream, wait());
  }

  async write(name: string, salt: string): Promise<void> {
    const tensor = this.#tensor(name);
    const values = valuesOf(this.layout, tensor, salt);
    let from = 0;
    for (const { address, bytes } of this.#rows(tensor)) {
      const row = values.subarray(from, from + bytes);
      await this.#driver.submit(this.#stream, [{ do: "upload", to: address, bytes: row }]);
      from += bytes;
    }
    await this.#driver.finish(this.#stream, wait());
  }

  /** Names of tensors that do not hold the salt's values. */
  async differing(salt: string): Promise<string[]> {
    const wrong: string[] = [];
    for (const tensor of this.layout.tensors) {
      const seen: Buffer[] = [];
      for (const range of this.#rows(tensor)) {
        seen.push(Buffer.from(await this.#driver.read(this.#stream, range, wait())));
      }
      const wanted = valuesOf(this.layout, tensor, salt);
      if (!Buffer.concat(seen).equals(wanted)) wrong.push(tensor.name);
    }
    return wrong;
  }

  /** The byte behind each row of the padded tensor: it belongs to nobody and must stay. */
  async paddingByte(): Promise<number> {
    const tensor = this.#tensor("padded");
    const base = this.#memory[tensor.allocation]?.address;
    if (base === undefined) throw new Error("no allocation");
    const address = at(base, tensor.offsetBytes + 30);
    return (await this.#driver.read(this.#stream, { address, bytes: 1 }, wait()))[0] ?? -1;
  }

  #tensor(name: string): Tensor {
    const tensor = this.layout.tensors.find((other) => other.name === name);
    if (tensor === undefined) throw new Error(`no tensor ${name}`);
    return tensor;
  }

  #rows(tensor: Tensor) {
    const base = this.#memory[tensor.allocation]?.address;
    if (base === undefined) throw new Error(`no allocation ${tensor.allocation}`);
    return rowBlocks(tensor).flatMap((block) =>
      Array.from({ length: block.rows }, (_, row) => ({
        address: at(base, block.offsetBytes + row * block.pitchBytes),
        bytes: block.rowBytes,
      })),
    );
  }
}

/** Tensors that share memory share values: the one that was laid out first gives them. */
function valuesOf(layout: WeightLayout, tensor: Tensor, salt: string): Buffer {
  const place = `${tensor.allocation}:${tensor.offsetBytes}`;
  const first = layout.tensors.find(
    (other) => `${other.allocation}:${other.offsetBytes}` === place && spanBytes(other) > 0,
  );
  const bytes = rowBlocks(tensor).reduce((sum, block) => sum + block.rowBytes * block.rows, 0);
  return createHash("shake128", { outputLength: Math.max(1, bytes) })
    .update(`${salt} ${first?.name}`)
    .digest()
    .subarray(0, bytes);
}

export function layOut(
  {
    tensors,
    allocationCount,
    isReversed,
    coordinate,
  }: Omit<EngineOptions, "driver" | "ordinal" | "sharing">,
  arch: number,
): WeightLayout {
  const ends = Array.from({ length: allocationCount }, () => 0);
  const laid = new Map<string, Tensor>();
  const free = tensors.filter((spec) => spec.at === undefined);
  for (const [index, spec] of (isReversed ? free.toReversed() : free).entries()) {
    const allocation = index % allocationCount;
    const offsetBytes = ends[allocation] ?? 0;
    laid.set(spec.name, place(spec, allocation, offsetBytes));
    const followers = tensors.filter((other) => other.at?.tensor === spec.name);
    let end = offsetBytes + spanBytes(spec);
    for (const other of followers) {
      const from = offsetBytes + (other.at?.offsetBytes ?? 0);
      laid.set(other.name, place(other, allocation, from));
      end = Math.max(end, from + spanBytes(other));
    }
    ends[allocation] = Math.ceil(end / roundingBytes) * roundingBytes;
  }
  return {
    version: 1,
    model: "test/model",
    revision: "abc",
    state: "live",
    arch,
    coordinate: {
      role: "target",
      tensor: one,
      pipeline: one,
      expert: one,
      data: one,
      ...coordinate,
    },
    allocations: ends.map((bytes) => ({ bytes: Math.max(bytes, roundingBytes) })),
    tensors: tensors.map(({ name }) => laid.get(name)).filter((tensor) => tensor !== undefined),
  };
}

function place(spec: TensorSpec, allocation: number, offsetBytes: number): Tensor {
  const { at: _, kind, ...tensor } = spec;
  return { ...tensor, kind: kind ?? "parameter", allocation, offsetBytes };
}
