// SPDX-License-Identifier: Apache-2.0
// The structs of kernels/include/relight/abi.h that the host fills, mirrored once. A test reads the
// header and fails when a name, an order, a type or a constant differs from this table.

import { assert, InvariantError } from "../errors.ts";

export const abi = {
  version: 1,
  constants: {
    RELIGHT_EP_RANKS_MAX: 32,
    RELIGHT_EP_TOPK_MAX: 16,
    RELIGHT_EP_HIDDEN_MAX: 8_192,
    RELIGHT_EP_NO_OWNER: 0xffff_ffff,
    RELIGHT_EP_BF16: 0,
    RELIGHT_EP_FP8: 1,
    RELIGHT_EP_FP8_POW2: 2,
    RELIGHT_EP_FP8_UE8M0: 3,
    RELIGHT_EP_SEND: 1,
    RELIGHT_EP_RECEIVE: 2,
    RELIGHT_EP_INDEX_64: 4,
    RELIGHT_EP_ZERO_COPY: 8,
    RELIGHT_EP_WEIGHTS: 16,
    RELIGHT_EP_PHASE_GATE: 1,
    RELIGHT_EP_PHASE_ROUTE: 2,
    RELIGHT_EP_PHASE_ROW: 3,
    RELIGHT_EP_PHASE_WEIGHT: 4,
    RELIGHT_EP_PHASE_COMBINE: 5,
    RELIGHT_EP_PHASE_BARRIER: 6,
    RELIGHT_EP_PHASE_FORMAT: 7,
    RELIGHT_EP_THREADS: 512,
    RELIGHT_EP_DISPATCH_SHARED: 131_072,
    RELIGHT_EP_COMBINE_SHARED: 135_168,
    RELIGHT_DIGEST_CHUNK: 262_144,
  },
  structs: {
    RelightEpResult: [
      ["epoch", "u64"],
      ["used", "u32"],
      ["failed", "u32"],
    ],
    RelightEpFault: [
      ["count", "u64"],
      ["epoch", "u64"],
      ["phase", "u32"],
      ["peer", "u32"],
      ["wanted", "u64"],
      ["seen", "u64"],
    ],
    RelightEpState: [
      ["abi_version", "u32"],
      ["rank", "u32"],
      ["ranks_max", "u32"],
      ["tokens_max", "u32"],
      ["hidden", "u32"],
      ["topk", "u32"],
      ["experts_max", "u32"],
      ["local_experts_max", "u32"],
      ["parities", "u32"],
      ["select_rows", "u32"],
      ["window_bytes", "u64"],
      ["scratch", "u64"],
      ["scratch_bytes", "u64"],
      ["host_record", "u64"],
      ["trace", "u64"],
      ["trace_entries", "u64"],
      ["timeout_ns", "u64"],
      ["window", "u64", 32],
      ["on_at", "u64", 32],
      ["off_at", "u64", 32],
      ["owner", "u64", 2],
      ["owner_at", "u64"],
      ["incarnation", "u32", 32],
      ["active", "u32"],
      ["suspect", "u32"],
      ["dispatch_sent", "u64"],
      ["dispatch_received", "u64"],
      ["combine_sent", "u64"],
      ["combine_received", "u64"],
      ["barriers", "u64"],
      ["verdict", "u64"],
      ["trace_start", "u64"],
      ["trace_count", "u64"],
      ["dispatch", "RelightEpResult"],
      ["combine", "RelightEpResult"],
      ["fault", "RelightEpFault"],
      ["dispatch_failed", "u32"],
      ["combine_failed", "u32"],
      ["blocks_left", "u32"],
      ["blocks_consumed", "u32"],
      ["select_blocks", "u32"],
      ["init_status", "u32"],
      ["row_cell_at", "u64"],
      ["combine_cell_at", "u64"],
      ["route_at", "u64"],
      ["weight_at", "u64"],
      ["row_at", "u64"],
      ["combine_at", "u64"],
      ["select_at", "u64"],
      ["route_block_bits", "u64"],
      ["route_stride", "u64"],
      ["weight_stride", "u64"],
      ["row_stride", "u64"],
      ["combine_stride", "u64"],
      ["index_at", "u64"],
      ["sent_at", "u64"],
      ["received_at", "u64"],
      ["select_count_at", "u64"],
    ],
    RelightEpInitArgs: [["state", "u64"]],
    RelightEpBarrierArgs: [["state", "u64"]],
    RelightEpDispatchArgs: [
      ["state", "u64"],
      ["x", "u64"],
      ["topk_index", "u64"],
      ["topk_weights", "u64"],
      ["token_count_at", "u64"],
      ["token_count", "u32"],
      ["format", "u32"],
      ["flags", "u32"],
      ["slots", "u32"],
      ["out_x", "u64"],
      ["out_scales", "u64"],
      ["out_source", "u64"],
      ["out_range", "u64"],
      ["out_count", "u64"],
    ],
    RelightEpCombineArgs: [
      ["state", "u64"],
      ["y", "u64"],
      ["topk_weights", "u64"],
      ["out", "u64"],
      ["slots", "u32"],
      ["flags", "u32"],
    ],
    RelightDigestSegment: [
      ["address", "u64"],
      ["bytes", "u64"],
      ["first_chunk", "u64"],
    ],
    RelightDigestArgs: [
      ["segments", "u64"],
      ["out", "u64"],
      ["seed", "u64"],
      ["chunk_count", "u64"],
      ["segment_count", "u32"],
      ["reserved", "u32"],
    ],
  },
} as const;

type Structs = typeof abi.structs;
export type StructName = keyof Structs;
type FieldsOf<Name extends StructName> = Structs[Name][number][0];
type Scalar = keyof typeof width;
/** A field's name, its type, and for an array how many. */
type Field = readonly [string, Scalar | StructName, number?];

/** Structs without arrays and inner structs: those that are written whole. */
export type FlatName = {
  [Name in StructName]: Structs[Name][number] extends readonly [string, Scalar] ? Name : never;
}[StructName];

/** A value for every field. u32 values are given as bigint too, so that one type serves all. */
export type StructValues<Name extends FlatName> = Readonly<Record<FieldsOf<Name>, bigint>>;

/** One number within a struct. */
export interface Place {
  readonly offset: number;
  readonly type: Scalar;
}

const width = { u32: 4, u64: 8 } as const;

/** The header keeps 64-bit fields on multiples of 8 and pads nothing, so sizes simply add up. */
export function structBytes(name: StructName): number {
  return fieldsOf(name).reduce((sum, field) => sum + fieldBytes(field), 0);
}

/** Where a field lies; `index` names one element of an array. */
export function placeOf<Name extends StructName>(
  name: Name,
  field: FieldsOf<Name>,
  index = 0,
): Place {
  let offset = 0;
  for (const [other, type, count = 1] of fieldsOf(name)) {
    if (other !== field) {
      offset += fieldBytes([other, type, count]);
      continue;
    }
    assert(index < count, `${name}.${field} has ${count} elements`);
    return { offset: offset + index * typeBytes(type), type: type === "u32" ? "u32" : "u64" };
  }
  throw new InvariantError(`${name} has the field ${field}`);
}

/** Where a field lies, in 64-bit words, of a struct that has no others: for tables too long to write field by field. */
export function wordOf(
  name: "RelightDigestSegment",
  field: FieldsOf<"RelightDigestSegment">,
): number {
  return placeOf(name, field).offset / width.u64;
}

/** Writes one struct at `offset` of `into`. */
export function writeStruct<Name extends FlatName>(
  name: Name,
  values: StructValues<Name>,
  into: { readonly bytes: Buffer; readonly offset: number },
): void {
  for (const [field] of fieldsOf(name)) {
    // The table's field names are the keys of `values`; the loop loses that, so it is said again.
    const key = field as FieldsOf<Name>;
    const { offset, type } = placeOf(name, key);
    writeScalar(into.bytes, { offset: into.offset + offset, type }, values[key]);
  }
}

/** Reads one struct. */
export function readStruct<Name extends FlatName>(
  name: Name,
  from: { readonly bytes: Buffer; readonly offset: number },
): StructValues<Name> {
  const values = fieldsOf(name).map(([field]) => {
    const { offset, type } = placeOf(name, field as FieldsOf<Name>);
    return [field, readScalar(from.bytes, { offset: from.offset + offset, type })];
  });
  return Object.fromEntries(values) as StructValues<Name>;
}

export function writeScalar(bytes: Buffer, { offset, type }: Place, value: bigint): void {
  if (type === "u64") bytes.writeBigUInt64LE(value, offset);
  else bytes.writeUInt32LE(Number(value), offset);
}

export function readScalar(bytes: Buffer, { offset, type }: Place): bigint {
  return type === "u64" ? bytes.readBigUInt64LE(offset) : BigInt(bytes.readUInt32LE(offset));
}

function fieldsOf(name: StructName): readonly Field[] {
  return abi.structs[name];
}

function fieldBytes([, type, count = 1]: Field): number {
  return typeBytes(type) * count;
}

function typeBytes(type: Scalar | StructName): number {
  return type === "u32" || type === "u64" ? width[type] : structBytes(type);
}
