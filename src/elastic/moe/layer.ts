// SPDX-License-Identifier: Apache-2.0
// One mixture-of-experts layer around an exchange: router, dispatch, feed-forward of the local experts,
// combine, and a check of every output row against the layer computed without any exchange. For the demo
// and the elastic benches; an engine brings its own. Weights are random by seed, the same on every rank.

import {
  at,
  type BlasHandle,
  type Command,
  type ContextHandle,
  type DevicePtr,
  type GpuDriver,
  type GpuMemory,
  type GraphHandle,
  type KernelHandle,
  type KernelParam,
  type MemoryHandle,
  type StreamHandle,
  type Wait,
} from "../../gpu/driver.ts";

export interface MoeShape {
  readonly hidden: number;
  /** Channels between the two products of an expert. */
  readonly inner: number;
  readonly experts: number;
  readonly topk: number;
  /** Of this rank, in each step. */
  readonly tokens: number;
  readonly localExpertsMax: number;
  /** Rows for each local expert: slots of the group times tokens. */
  readonly rows: number;
  readonly ranksMax: number;
}

/** The two launches of the exchange, as src/gpu/ep-device.ts makes them. */
export interface MoeExchange {
  dispatch(args: {
    readonly x: DevicePtr;
    readonly topkIndex: DevicePtr;
    readonly topkWeights: DevicePtr;
    readonly tokens: number;
    readonly format: "bf16";
    readonly out: {
      readonly slots: number;
      readonly x: DevicePtr;
      readonly scales: null;
      readonly source: DevicePtr;
      readonly range: DevicePtr;
      readonly count: DevicePtr;
    };
  }): Command;
  combine(args: {
    readonly y: DevicePtr;
    readonly out: DevicePtr;
    readonly slots: number;
    readonly topkWeights: null;
  }): Command;
}

export interface MoeOptions {
  readonly context: ContextHandle;
  /** Of the exchange. */
  readonly stream: StreamHandle;
  readonly exchange: MoeExchange;
  readonly shape: MoeShape;
  /** Ranks with other numbers have other inputs. */
  readonly number: number;
  /** Different inputs, used by turns. */
  readonly batchCount: number;
  /** The module with the relight_moe kernels. */
  readonly image: Uint8Array;
  /** cuBLAS's library; null: by its usual names. */
  readonly blasFile: string | null;
  readonly wait: Wait;
}

/** Rows checked since the layer was opened. */
export interface MoeVerdict {
  readonly rows: number;
  /** Further from the reference than the limit, or not finite. */
  readonly bad: number;
  /** Relative L2 error of the worst row. */
  readonly worst: number;
}

/** Two roundings to bf16 and another order of sums give 4e-3; a missing expert gives 0.3 and more. */
const rowErrorMax = 1e-2;
const fillBlocks = 256;
const threads = 256;
const verdictBytes = 24;
const seeds = { router: 1, inputs: 1_000, experts: 1_000_000 } as const;

interface Kernels {
  readonly fill: KernelHandle;
  readonly route: KernelHandle;
  readonly silu: KernelHandle;
  readonly check: KernelHandle;
}

export class MoeLayer {
  /** Of one expert's weights. */
  readonly expertBytes: number;
  readonly #driver: GpuDriver;
  readonly #options: MoeOptions;
  readonly #kernels: Kernels;
  readonly #blas: BlasHandle;
  readonly #experts: GpuMemory;
  /** Experts are loaded beside the steps. */
  readonly #loader: StreamHandle;
  readonly #at: Places;
  #graphs: readonly GraphHandle[] = [];
  #missing: readonly number[] = [];

  private constructor(fields: {
    driver: GpuDriver;
    options: MoeOptions;
    kernels: Kernels;
    blas: BlasHandle;
    experts: GpuMemory;
    loader: StreamHandle;
    places: Places;
  }) {
    this.#driver = fields.driver;
    this.#options = fields.options;
    this.#kernels = fields.kernels;
    this.#blas = fields.blas;
    this.#experts = fields.experts;
    this.#loader = fields.loader;
    this.#at = fields.places;
    this.expertBytes = expertBytes(fields.options.shape);
  }

  /** @throws device_memory, device_unsupported (no cuBLAS, no kernels for this GPU) */
  static async open(driver: GpuDriver, options: MoeOptions): Promise<MoeLayer> {
    const { context, shape, image, blasFile } = options;
    const module = await driver.loadModule(context, image);
    const kernels = {
      fill: await driver.kernel(module, "relight_moe_fill", 0),
      route: await driver.kernel(module, "relight_moe_route", 0),
      silu: await driver.kernel(module, "relight_moe_silu", 0),
      check: await driver.kernel(module, "relight_moe_check", 0),
    };
    const blas = await driver.openBlas(context, blasFile);
    const bytes = expertBytes(shape) * shape.localExpertsMax;
    const experts = await driver.allocate(context, { bytes, sharing: "descriptor" });
    const sizes = sizesOf(options);
    const total = Object.values(sizes).reduce((sum, size) => sum + roundUp(size), 0);
    const memory = await driver.allocate(context, { bytes: total, sharing: "private" });
    const loader = await driver.openStream(context);
    const places = placesIn(memory.address, sizes);
    const layer = new MoeLayer({ driver, options, kernels, blas, experts, loader, places });
    await layer.#prepare();
    return layer;
  }

  /** A handle to the memory of all local experts; descriptors are the caller's to close. */
  exportExperts(): Promise<MemoryHandle> {
    return this.#driver.exportMemory(this.#experts.id);
  }

  /** Makes an expert's weights anew, as a checkpoint would give them. */
  async makeExpert(expert: number, local: number): Promise<void> {
    await this.#load(this.#fillExpert(expert, this.#expertAt(local)));
  }

  /** Copies experts out of a peer's memory. */
  async copyExperts(
    from: MemoryHandle,
    copies: readonly { readonly from: number; readonly to: number }[],
  ): Promise<void> {
    const memory = await this.#driver.importMemory(this.#options.context, from);
    try {
      const bytes = this.expertBytes;
      await this.#load(
        copies.map(({ from: theirs, to }) => ({
          do: "copy" as const,
          to: this.#expertAt(to),
          from: at(memory.address, theirs * bytes),
          bytes,
        })),
      );
    } finally {
      await this.#driver.close(memory.id);
    }
  }

  /** One step on one of the inputs; `missing` are experts whose part of the output is not to be there. */
  step(batch: number, missing: readonly number[]): readonly Command[] {
    const graph = this.#graphs[batch % this.#graphs.length];
    if (graph === undefined) return [];
    const run: Command = { do: "graph", graph };
    if (isSame(missing, this.#missing)) return [run];
    this.#missing = missing;
    const bytes = new Uint8Array(this.#options.shape.experts);
    for (const expert of missing) bytes[expert] = 1;
    return [{ do: "upload", to: this.#at.missing, bytes }, run];
  }

  /**
   * Captures the steps, once for as long as the layer lives, and replays each: the first launch of a graph
   * takes milliseconds, for which peers would wait. Without members the exchange has nobody to wait for.
   */
  async capture(): Promise<void> {
    const graphs: GraphHandle[] = [];
    for (let batch = 0; batch < this.#options.batchCount; batch += 1) {
      graphs.push(await this.#driver.capture(this.#options.stream, this.#commands(batch)));
    }
    this.#graphs = graphs;
    await this.#driver.submit(
      this.#options.stream,
      graphs.map((graph) => ({ do: "graph" as const, graph })),
    );
    await this.#driver.finish(this.#options.stream, this.#options.wait);
    await this.forget();
  }

  async verdict(): Promise<MoeVerdict> {
    const from = { address: this.#at.verdict, bytes: verdictBytes };
    const bytes = await this.#driver.read(this.#loader, from, this.#options.wait);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    return {
      rows: Number(view.getBigUint64(0, true)),
      bad: Number(view.getBigUint64(8, true)),
      worst: view.getFloat32(16, true),
    };
  }

  /** Forgets what was checked so far: a step that was faulty is no row's fault. */
  async forget(): Promise<void> {
    await this.#load([{ do: "fill", to: this.#at.verdict, byte: 0, bytes: verdictBytes }]);
  }

  /** Weights, inputs, and what every expert makes of them. */
  async #prepare(): Promise<void> {
    const { shape, number, batchCount, stream, wait } = this.#options;
    const { hidden, experts, tokens } = shape;
    const commands: Command[] = [
      { do: "fill", to: this.#at.missing, byte: 0, bytes: experts },
      { do: "fill", to: this.#at.verdict, byte: 0, bytes: verdictBytes },
      this.#fill(this.#at.router, experts * hidden, seeds.router, 3 / Math.sqrt(hidden)),
    ];
    for (let expert = 0; expert < experts; expert += 1) {
      const to = at(this.#at.allExperts, expert * expertBytes(shape));
      commands.push(...this.#fillExpert(expert, to));
    }
    for (let batch = 0; batch < batchCount; batch += 1) {
      const seed = seeds.inputs * (1 + number) + batch;
      commands.push(this.#fill(this.#xAt(batch), tokens * hidden, seed, 1));
      commands.push(
        ...this.#feedForward({
          ...{ x: this.#xAt(batch), xStride: 0, weights: this.#at.allExperts },
          ...{ batch: experts, rows: tokens, out: this.#referenceAt(batch) },
        }),
      );
    }
    await this.#driver.submit(stream, commands);
    await this.#driver.finish(stream, wait);
  }

  #commands(batch: number): Command[] {
    const { shape, exchange } = this.#options;
    const { hidden, experts, topk, tokens, rows, localExpertsMax } = shape;
    const places = this.#at;
    const x = this.#xAt(batch);
    const routed = { topkIndex: places.index, topkWeights: places.weights };
    return [
      {
        ...{ do: "gemm", blas: this.#blas, x, weights: places.router, out: places.logits },
        ...{ outType: "f32", batch: 1, rows: tokens, columns: experts, depth: hidden },
        ...{ xStride: 0, weightsStride: 0, outStride: 0 },
      },
      launch(this.#kernels.route, { blocks: tokens, threads: 32 }, [
        ...addresses(places.logits, places.index, places.weights),
        ...[{ u32: experts }, { u32: topk }],
      ]),
      exchange.dispatch({
        ...{ x, ...routed, tokens, format: "bf16" },
        out: {
          ...{ slots: rows, x: places.received, scales: null },
          ...{ source: places.source, range: places.range, count: places.count },
        },
      }),
      ...this.#feedForward({
        ...{ x: places.received, xStride: rows * hidden, weights: this.#experts.address },
        ...{ batch: localExpertsMax, rows, out: places.y },
      }),
      exchange.combine({ y: places.y, out: places.out, slots: rows, topkWeights: null }),
      launch(this.#kernels.check, { blocks: tokens, threads }, [
        ...addresses(places.out, this.#referenceAt(batch), places.index, places.weights),
        ...addresses(places.missing, places.verdict),
        ...[{ u32: tokens }, { u32: hidden }, { u32: topk }, { f32: rowErrorMax }],
      ]),
    ];
  }

  /** down(silu(gate(x)) * up(x)) of several experts at once. */
  #feedForward(of: {
    readonly x: DevicePtr;
    readonly xStride: number;
    readonly weights: DevicePtr;
    readonly batch: number;
    readonly rows: number;
    readonly out: DevicePtr;
  }): Command[] {
    const { hidden, inner } = this.#options.shape;
    const { batch, rows } = of;
    const { gateUp, activated } = this.#at;
    const weightsStride = 3 * hidden * inner;
    const gemm = {
      do: "gemm",
      blas: this.#blas,
      outType: "bf16",
      batch,
      rows,
      weightsStride,
    } as const;
    return [
      {
        ...{ ...gemm, x: of.x, xStride: of.xStride, weights: of.weights, depth: hidden },
        ...{ out: gateUp, outStride: rows * 2 * inner, columns: 2 * inner },
      },
      launch(this.#kernels.silu, { blocks: 4 * fillBlocks, threads }, [
        ...addresses(gateUp, activated),
        ...[{ u64: BigInt(batch * rows) }, { u32: inner }],
      ]),
      {
        ...{ ...gemm, x: activated, xStride: rows * inner, depth: inner },
        weights: at(of.weights, 2 * 2 * inner * hidden),
        ...{ out: of.out, outStride: rows * hidden, columns: hidden },
      },
    ];
  }

  #fillExpert(expert: number, to: DevicePtr): Command[] {
    const { hidden, inner } = this.#options.shape;
    const down = at(to, 2 * 2 * inner * hidden);
    const seed = seeds.experts + 2 * expert;
    return [
      this.#fill(to, 2 * inner * hidden, seed, 3 / Math.sqrt(hidden)),
      this.#fill(down, hidden * inner, seed + 1, 3 / Math.sqrt(inner)),
    ];
  }

  #fill(to: DevicePtr, count: number, seed: number, scale: number): Command {
    const values = [{ u64: BigInt(count) }, { u32: seed }, { f32: scale }];
    return launch(this.#kernels.fill, { blocks: fillBlocks, threads }, [
      ...addresses(to),
      ...values,
    ]);
  }

  async #load(commands: readonly Command[]): Promise<void> {
    await this.#driver.submit(this.#loader, commands);
    await this.#driver.finish(this.#loader, this.#options.wait);
  }

  #expertAt(local: number): DevicePtr {
    return at(this.#experts.address, local * expertBytes(this.#options.shape));
  }

  #xAt(batch: number): DevicePtr {
    const { tokens, hidden } = this.#options.shape;
    return at(this.#at.x, batch * tokens * hidden * 2);
  }

  #referenceAt(batch: number): DevicePtr {
    const { tokens, hidden, experts } = this.#options.shape;
    return at(this.#at.reference, batch * experts * tokens * hidden * 2);
  }
}

export function expertBytes({ hidden, inner }: Pick<MoeShape, "hidden" | "inner">): number {
  return 3 * hidden * inner * 2;
}

type Places = Readonly<Record<keyof ReturnType<typeof sizesOf>, DevicePtr>>;

/** Bytes of everything that only this rank sees. */
function sizesOf({ shape, batchCount }: MoeOptions) {
  const { hidden, inner, experts, topk, tokens, rows, localExpertsMax, ranksMax } = shape;
  const widest = Math.max(localExpertsMax * rows, experts * tokens);
  return {
    router: experts * hidden * 2,
    allExperts: experts * expertBytes(shape),
    x: batchCount * tokens * hidden * 2,
    reference: batchCount * experts * tokens * hidden * 2,
    logits: tokens * experts * 4,
    index: tokens * topk * 4,
    weights: tokens * topk * 4,
    received: localExpertsMax * rows * hidden * 2,
    source: localExpertsMax * rows * 4,
    range: localExpertsMax * ranksMax * 8,
    count: localExpertsMax * 4,
    gateUp: widest * 2 * inner * 2,
    activated: widest * inner * 2,
    y: localExpertsMax * rows * hidden * 2,
    out: tokens * hidden * 2,
    missing: experts,
    verdict: verdictBytes,
  };
}

function placesIn(memory: DevicePtr, sizes: ReturnType<typeof sizesOf>): Places {
  let next = 0;
  const places = Object.entries(sizes).map(([name, bytes]) => {
    const place = at(memory, next);
    next += roundUp(bytes);
    return [name, place];
  });
  return Object.fromEntries(places) as Places;
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / 256) * 256;
}

function addresses(...values: readonly DevicePtr[]): KernelParam[] {
  return values.map((u64) => ({ u64 }));
}

function launch(
  kernel: KernelHandle,
  { blocks, threads: perBlock }: { readonly blocks: number; readonly threads: number },
  params: readonly KernelParam[],
): Command {
  return {
    do: "launch",
    kernel,
    grid: [blocks, 1, 1],
    block: [perBlock, 1, 1],
    sharedBytes: 0,
    cooperative: false,
    params,
  };
}

function isSame(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}
