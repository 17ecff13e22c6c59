// SPDX-License-Identifier: Apache-2.0
// What a worker's weights are: every tensor of the live, post-processed model with its place in memory
// (a layout), and, once published, what each holds (digests) and in which generation (a manifest).
// Both arrive from other processes and are checked here, in one pass, before anybody believes them.

import { z } from "zod";
import { blake3Hex } from "../core/digest.ts";
import { RelightError } from "../errors.ts";
import { coordinateKey, coordinateSchema } from "./coordinate.ts";
import { type Dtype, itemBytes, rowCount, spanBytes, type Tensor } from "./tensor.ts";

export const tensorCountMax = 500_000;
export const allocationCountMax = 100_000;
export const rowCountMax = 1_000_000;
const namePattern = /^[^\p{Cc}]{1,1024}$/u;
const dimensionCountMax = 16;
const digestPattern = /^[0-9a-f]{32}$/;
const lengthMax = 2 ** 48; // Sixteen of them multiply to a finite number.
const allocationBytesMax = 2 ** 44;

const header = {
  version: z.literal(1),
  model: z.string().min(1).max(1_024),
  /** The commit of the model's files; empty when the engine does not know it. */
  revision: z.string().max(256),
  /** `live` is after the engine's post-load processing; a raw tensor would be processed twice. */
  state: z.enum(["live", "raw"]),
  /** Kernel layouts of quantised tensors depend on the GPU: compute capability times ten. */
  arch: z.number().int().min(0).max(10_000),
  coordinate: coordinateSchema,
  allocations: z
    .array(z.strictObject({ bytes: z.number().int().min(1).max(allocationBytesMax) }))
    .max(allocationCountMax),
  // Checked by hand below: a manifest has tens of thousands, and its reader is in a hurry.
  tensors: z.array(z.unknown()).max(tensorCountMax),
};
const layoutSchema = z.strictObject(header);
const manifestSchema = z.strictObject({
  ...header,
  generation: z.number().int().min(1),
  /** By tensor, in their order; `null` for a tensor without bytes. */
  digests: z.array(z.unknown()).max(tensorCountMax),
});

/** A worker's tensors and where they lie. What a target wants filled. */
export interface WeightLayout extends Omit<z.infer<typeof layoutSchema>, "tensors"> {
  readonly tensors: readonly Tensor[];
}

/** A layout and what it held when it was published. What a source offers. */
export interface WeightManifest extends WeightLayout {
  readonly generation: number;
  readonly digests: readonly (string | null)[];
}

/** @throws manifest_invalid, naming the first offence */
export function parseLayout(value: unknown): WeightLayout {
  const parsed = layoutSchema.safeParse(value);
  if (!parsed.success) throw invalid(firstIssue(parsed.error));
  return { ...parsed.data, tensors: checkTensors(parsed.data) };
}

/** @throws manifest_invalid, naming the first offence */
export function parseManifest(value: unknown): WeightManifest {
  const parsed = manifestSchema.safeParse(value);
  if (!parsed.success) throw invalid(firstIssue(parsed.error));
  const tensors = checkTensors(parsed.data);
  return { ...parsed.data, tensors, digests: checkDigests(parsed.data.digests, tensors) };
}

/**
 * What two workers must share so that one may take the other's tensors: 64 hex characters over
 * everything but the places in memory, which each worker has of its own.
 */
export function layoutFingerprint(layout: WeightLayout): string {
  const lines = layout.tensors.map(tensorLine).sort();
  return blake3Hex(Buffer.from(`${headLine(layout)}\n${lines.join("\n")}`));
}

/** The seed of every digest of this part of this model: the same for all sources, so digests compare. */
export function digestSeed(layout: WeightLayout): bigint {
  return BigInt(`0x${blake3Hex(Buffer.from(headLine(layout))).slice(0, 16)}`);
}

/** Names one set of values of one layout, whatever source and generation it comes from. */
export function contentId(manifest: WeightManifest): string {
  const lines = manifest.tensors.map((tensor, i) => `${tensorLine(tensor)} ${manifest.digests[i]}`);
  return blake3Hex(Buffer.from(`${headLine(manifest)}\n${lines.sort().join("\n")}`));
}

function headLine({ model, revision, state, arch, coordinate }: WeightLayout): string {
  return JSON.stringify([1, model, revision, state, arch, coordinateKey(coordinate)]);
}

/** One line for one tensor: names have no line breaks, and what follows them no spaces. */
function tensorLine({ name, dtype, shape, stride }: Tensor): string {
  return `${name} ${dtype} ${shape} ${stride}`;
}

interface Unchecked {
  readonly tensors: readonly unknown[];
  readonly allocations: readonly { readonly bytes: number }[];
}

function checkTensors({ tensors, allocations }: Unchecked): Tensor[] {
  const names = new Set<string>();
  let rows = 0;
  const checked = tensors.map((value, index) => {
    const tensor = checkTensor(value, `tensor ${index}`);
    if (names.has(tensor.name)) throw invalid(`two tensors are named "${tensor.name}"`);
    names.add(tensor.name);
    checkPlace(tensor, allocations);
    rows += rowCount(tensor);
    return tensor;
  });
  if (rows > rowCountMax) throw invalid(`its tensors have ${rows} rows, at most ${rowCountMax}`);
  return checked;
}

function checkDigests(digests: readonly unknown[], tensors: readonly Tensor[]): (string | null)[] {
  if (digests.length !== tensors.length) {
    throw invalid(`${digests.length} digests for ${tensors.length} tensors`);
  }
  return tensors.map((tensor, index) => {
    const digest = digests[index];
    const isEmpty = spanBytes(tensor) === 0;
    if (isEmpty && digest === null) return null;
    if (!isEmpty && typeof digest === "string" && digestPattern.test(digest)) return digest;
    throw invalid(`"${tensor.name}" has ${spanBytes(tensor)} bytes and no digest that fits`);
  });
}

function checkTensor(value: unknown, where: string): Tensor {
  if (typeof value !== "object" || value === null) throw invalid(`${where} is no object`);
  const fields = value as Readonly<Record<string, unknown>>;
  const { name, kind, dtype, shape, stride, allocation, offsetBytes } = fields;
  if (typeof name !== "string" || !namePattern.test(name)) {
    throw invalid(`${where} has no name of 1 to 1024 printable characters`);
  }
  if (kind !== "parameter" && kind !== "buffer" && kind !== "derived") {
    throw invalid(`"${name}" is of no known kind`);
  }
  if (!isDtype(dtype)) throw invalid(`"${name}" has unknown dtype ${JSON.stringify(dtype)}`);
  if (!isCountList(shape) || !isCountList(stride) || shape.length !== stride.length) {
    throw invalid(`"${name}" has no shape and stride of the same length`);
  }
  if (!isCount(allocation) || !isCount(offsetBytes)) throw invalid(`"${name}" has no place`);
  return { name, kind, dtype, shape, stride, allocation, offsetBytes };
}

function checkPlace(tensor: Tensor, allocations: readonly { readonly bytes: number }[]): void {
  const allocation = allocations[tensor.allocation];
  const bytes = spanBytes(tensor);
  // A tensor without bytes lies nowhere, and engines give it any place.
  if (bytes === 0) return;
  if (allocation === undefined || tensor.offsetBytes + bytes > allocation.bytes) {
    throw invalid(
      `"${tensor.name}" ends at byte ${tensor.offsetBytes + bytes} of allocation ` +
        `${tensor.allocation}, which has ${allocation?.bytes ?? 0}`,
    );
  }
  if (rowCount(tensor) > rowCountMax) {
    throw invalid(`"${tensor.name}" is scattered over more than ${rowCountMax} rows`);
  }
}

function isDtype(value: unknown): value is Dtype {
  return typeof value === "string" && Object.hasOwn(itemBytes, value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isCountList(value: unknown): value is number[] {
  return (
    Array.isArray(value) &&
    value.length <= dimensionCountMax &&
    value.every((one) => isCount(one) && one <= lengthMax)
  );
}

function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  return `${issue?.path.join(".") || "it"}: ${issue?.message ?? "wrong"}`;
}

function invalid(why: string): RelightError {
  return new RelightError("manifest_invalid", `Cannot read a tensor manifest: ${why}`);
}
