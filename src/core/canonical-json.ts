// SPDX-License-Identifier: Apache-2.0
// Canonical JSON: keys in code-unit order, no spaces, so that equal values have equal bytes and
// therefore equal digests. Numbers are safe integers only; everything else is refused.

import { assert } from "../errors.ts";

export type Json =
  | null
  | boolean
  | number
  | string
  | readonly Json[]
  | { readonly [key: string]: Json };

/** @throws InvariantError for a number that is not a safe integer. */
export function canonicalJson(value: Json): string {
  if (typeof value === "number") {
    assert(Number.isSafeInteger(value), `canonical JSON holds safe integers, got ${value}`);
    return String(value);
  }
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (isList(value)) return `[${value.map(canonicalJson).join(",")}]`;
  const keys = Object.keys(value).sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key] ?? null)}`).join(",")}}`;
}

function isList(value: Json): value is readonly Json[] {
  return Array.isArray(value);
}
