// SPDX-License-Identifier: Apache-2.0
// The form that a file must have whatever its family: what calls itself an ELF object, JSON or
// safetensors is one. Pure: whoever holds the bytes can look, the fetcher while it has them or the
// installer from the disk.

import { breaksSafetensors, safetensorsHeadBytes } from "./safetensors.ts";
import { MiB } from "./units.ts";

/** Of an ELF object, as the little-endian number that its first four bytes are. */
const elfMagic = 0x46_4c_45_7f;
const elfMagicBytes = 4;

/** Enough to tell how much has to be read of any file. */
export const firstBytes = 8;
/** Of a JSON file, in bytes: it is read whole. */
export const jsonBytesMax = 64 * MiB;

export type NamedForm = "elf" | "json" | "safetensors";

/** What the name promises; null when it promises nothing that can be checked. */
export function namedForm(path: string): NamedForm | null {
  if (path.endsWith(".json")) return "json";
  if (path.endsWith(".safetensors")) return "safetensors";
  return path.endsWith(".cubin") || path.endsWith(".so") || path.endsWith(".o") ? "elf" : null;
}

/**
 * How many bytes from the beginning `breaksForm` must see of a file of `size`.
 * @param first the file's first `firstBytes`, or all there are
 */
export function formBytes(form: NamedForm, first: Buffer, size: number): number {
  if (form === "json") return size;
  if (form === "safetensors") return Math.min(size, safetensorsHeadBytes(first, size));
  return Math.min(size, elfMagicBytes);
}

/** Why a file of `size` is not what its name says; null when it is. `bytes`: `formBytes` or more of it. */
export function breaksForm(form: NamedForm, bytes: Buffer, size: number): string | null {
  if (form === "elf") {
    const isElf = bytes.length >= elfMagicBytes && bytes.readUInt32LE(0) === elfMagic;
    return isElf ? null : "it is not an ELF object";
  }
  if (form === "safetensors") return breaksSafetensors(bytes, size);
  if (size > jsonBytesMax) return "its JSON is too large";
  try {
    JSON.parse(bytes.toString("utf8"));
    return null;
  } catch {
    return "it is not JSON";
  }
}
