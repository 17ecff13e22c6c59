// SPDX-License-Identifier: Apache-2.0
// The structs of kernels/include/relight/abi.h that the host fills, mirrored once. A test reads the
// header and fails when a name, an order, a type or a constant differs from this table.

export const abi = {
  version: 1,
  constants: {
    RELIGHT_DIGEST_CHUNK: 262_144,
  },
  structs: {
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

/** A value for every field. u32 values are given as bigint too, so that one type serves all. */
export type StructValues<Name extends StructName> = Readonly<Record<FieldsOf<Name>, bigint>>;

const width = { u32: 4, u64: 8 } as const;

/** The header keeps 64-bit fields on multiples of 8 and pads nothing, so sizes simply add up. */
export function structBytes(name: StructName): number {
  return abi.structs[name].reduce((sum, [, type]) => sum + width[type], 0);
}

/** Where a field lies, in 64-bit words, of a struct that has no others: for tables too long to write field by field. */
export function wordOf(
  name: "RelightDigestSegment",
  field: FieldsOf<"RelightDigestSegment">,
): number {
  return abi.structs[name].findIndex(([other]) => other === field);
}

/** Writes one struct at `offset` of `into`. */
export function writeStruct<Name extends StructName>(
  name: Name,
  values: StructValues<Name>,
  into: { readonly bytes: Buffer; readonly offset: number },
): void {
  let at = into.offset;
  for (const [field, type] of abi.structs[name]) {
    // The table's field names are the keys of `values`; the loop loses that, so it is said again.
    const value = values[field as FieldsOf<Name>];
    if (type === "u64") into.bytes.writeBigUInt64LE(value, at);
    else into.bytes.writeUInt32LE(Number(value), at);
    at += width[type];
  }
}

/** Reads one struct, for the fake and for tests. */
export function readStruct<Name extends StructName>(
  name: Name,
  from: { readonly bytes: Buffer; readonly offset: number },
): StructValues<Name> {
  let at = from.offset;
  const values = abi.structs[name].map(([field, type]) => {
    const value =
      type === "u64" ? from.bytes.readBigUInt64LE(at) : BigInt(from.bytes.readUInt32LE(at));
    at += width[type];
    return [field, value];
  });
  return Object.fromEntries(values) as StructValues<Name>;
}
