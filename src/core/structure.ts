// SPDX-License-Identifier: Apache-2.0
// The form that a file must have whatever its family: what calls itself an ELF object or JSON is one.
// Pure: whoever holds the bytes can look, the fetcher while it has them or the installer from the disk.

import { MiB } from "./units.ts";

const elfMagic = Buffer.from([0x7f, 0x45, 0x4c, 0x46]);

/** Of a JSON file, in bytes: it is read whole. */
export const jsonBytesMax = 64 * MiB;

export type NamedForm = "elf" | "json";

/** What the name promises; null when it promises nothing that can be checked. */
export function namedForm(path: string): NamedForm | null {
  if (path.endsWith(".json")) return "json";
  return path.endsWith(".cubin") || path.endsWith(".so") || path.endsWith(".o") ? "elf" : null;
}

/** How many bytes from the beginning `breaksForm` must see of a file of `size`. */
export function formBytes(form: NamedForm, size: number): number {
  return form === "json" ? size : Math.min(size, elfMagic.length);
}

/** Why the file is not what its name says, in words; null when it is. `bytes`: `formBytes` or more. */
export function breaksForm(form: NamedForm, bytes: Buffer): string | null {
  if (form === "elf") {
    const head = bytes.subarray(0, elfMagic.length);
    return head.equals(elfMagic) ? null : "it is not an ELF object";
  }
  if (bytes.length > jsonBytesMax) return "its JSON is too large";
  try {
    JSON.parse(bytes.toString("utf8"));
    return null;
  } catch {
    return "it is not JSON";
  }
}
