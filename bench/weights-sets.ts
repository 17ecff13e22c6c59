// SPDX-License-Identifier: Apache-2.0
// Realistic sets of tensors for the weights benchmark, dealt out over memory as torch's allocator does.

import type { WeightLayout } from "../src/weights/manifest.ts";
import { spanBytes, type Tensor } from "../src/weights/tensor.ts";

const MiB = 2 ** 20;
const roundingBytes = 512;
const reservedBytes = 1_024 * MiB; // As relight.torch.reserve does.

type Spec = Pick<Tensor, "name" | "dtype" | "shape">;

/** One of eight shards of a 70-billion-parameter Llama in bf16, projections unfused: 723 tensors. */
function llama70bOf8(layerCount = 80): Spec[] {
  const bf16 = (name: string, ...shape: number[]): Spec => ({ name, dtype: "bfloat16", shape });
  const layers = Array.from({ length: layerCount }, (_, index) => `model.layers.${index}`).flatMap(
    (at) => [
      bf16(`${at}.input_layernorm.weight`, 8192),
      bf16(`${at}.self_attn.q_proj.weight`, 1024, 8192),
      bf16(`${at}.self_attn.k_proj.weight`, 128, 8192),
      bf16(`${at}.self_attn.v_proj.weight`, 128, 8192),
      bf16(`${at}.self_attn.o_proj.weight`, 8192, 1024),
      bf16(`${at}.post_attention_layernorm.weight`, 8192),
      bf16(`${at}.mlp.gate_proj.weight`, 3584, 8192),
      bf16(`${at}.mlp.up_proj.weight`, 3584, 8192),
      bf16(`${at}.mlp.down_proj.weight`, 8192, 3584),
    ],
  );
  return [
    bf16("model.embed_tokens.weight", 16_032, 8192),
    ...layers,
    bf16("model.norm.weight", 8192),
    bf16("lm_head.weight", 16_032, 8192),
  ];
}

/** Expert tensors in fp8 with their scales, as a DeepSeek-V3 shard has them: 18,432 tensors. */
function deepseekExperts(): Spec[] {
  return Array.from({ length: 12 * 256 }, (_, index) => {
    const at = `model.layers.${3 + Math.floor(index / 256)}.mlp.experts.${index % 256}`;
    return (["w1", "w3", "w2"] as const).flatMap((name): Spec[] => {
      const shape = name === "w2" ? [7168, 256] : [256, 7168];
      const blocks = shape.map((length) => length / 128);
      return [
        { name: `${at}.${name}.weight`, dtype: "float8_e4m3fn", shape },
        { name: `${at}.${name}.weight_scale_inv`, dtype: "float32", shape: blocks },
      ];
    });
  }).flat();
}

/** Many small tensors, to see what a handshake costs. */
function tenThousand(): Spec[] {
  return Array.from({ length: 10_000 }, (_, index) => ({
    name: `model.layers.${Math.floor(index / 250)}.mlp.experts.${index % 250}.w1.weight`,
    dtype: "uint8",
    shape: [64, 64],
  }));
}

export const sets = {
  llama70bOf8: () => llama70bOf8(),
  /** A tenth of it, for links that are a hundred times slower. */
  llamaEightLayers: () => llama70bOf8(8),
  deepseekExperts,
  tenThousand,
} as const;
export type SetName = keyof typeof sets;

/** A trial without GPUs is about the way, not the load. */
const isTrial = process.env["RELIGHT_BENCH_BACKEND"] === "fake";

function small(spec: Spec): Spec {
  return { ...spec, shape: spec.shape.map((length) => Math.min(length, 48)) };
}

/**
 * How an engine's allocator deals tensors out: `torch` as it does by default, `reserved` from pieces
 * of 1 GiB that were reserved before (relight.torch.reserve), `reversed` the same in the opposite order, so
 * that no two neighbours stay neighbours.
 */
export type Dealing = "torch" | "reserved" | "reversed";

export function layoutOf(set: SetName, { arch, dealing }: { arch: number; dealing: Dealing }) {
  const specs = isTrial ? sets[set]().slice(0, 40).map(small) : sets[set]();
  const pools = new Pools(dealing !== "torch");
  const ordered = dealing === "reversed" ? specs.toReversed() : specs;
  const placed = new Map(ordered.map((spec) => [spec.name, pools.place(spec)]));
  const tensors = specs.map((spec): Tensor => {
    const place = placed.get(spec.name) ?? { allocation: 0, offsetBytes: 0 };
    return { ...spec, ...place, kind: "parameter", stride: contiguous(spec.shape) };
  });
  const one = { rank: 0, size: 1 };
  const coordinate = {
    role: "target",
    tensor: one,
    pipeline: one,
    expert: one,
    data: one,
  } as const;
  const head = { version: 1, model: set, revision: "", state: "live", arch, coordinate } as const;
  return { ...head, allocations: pools.allocations(), tensors } satisfies WeightLayout;
}

/** Small tensors share 2 MiB, middling ones 20 MiB, large ones have an allocation each. */
class Pools {
  readonly #sizes: number[] = [];
  readonly #open = new Map<number, { allocation: number; used: number }>();
  readonly #isReserved: boolean;

  constructor(isReserved: boolean) {
    this.#isReserved = isReserved;
  }

  place(spec: Spec): { allocation: number; offsetBytes: number } {
    const span = spanBytes({ ...spec, stride: contiguous(spec.shape) });
    const bytes = Math.ceil(span / roundingBytes) * roundingBytes;
    if (this.#isReserved) return this.#placeIn(reservedBytes, bytes);
    if (bytes >= 10 * MiB) {
      return { allocation: this.#add(2 * MiB * Math.ceil(bytes / 2 / MiB)), offsetBytes: 0 };
    }
    return this.#placeIn(bytes <= MiB ? 2 * MiB : 20 * MiB, bytes);
  }

  allocations() {
    return this.#sizes.map((bytes) => ({ bytes }));
  }

  #placeIn(segment: number, bytes: number): { allocation: number; offsetBytes: number } {
    const open = this.#open.get(segment);
    if (open === undefined || open.used + bytes > segment) {
      const allocation = this.#add(segment);
      this.#open.set(segment, { allocation, used: bytes });
      return { allocation, offsetBytes: 0 };
    }
    const offsetBytes = open.used;
    open.used += bytes;
    return { allocation: open.allocation, offsetBytes };
  }

  #add(bytes: number): number {
    return this.#sizes.push(bytes) - 1;
  }
}

function contiguous(shape: readonly number[]): number[] {
  return shape.map((_, axis) =>
    shape.slice(axis + 1).reduce((product, length) => product * length, 1),
  );
}
