// SPDX-License-Identifier: Apache-2.0
// Golden files: what users and other versions rely on, kept as it was promised. Rewritten only by
// `npm run golden` and reviewed as code.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Set by tools/golden.ts: write instead of compare. */
const isWriting = process.env["GOLDEN"] === "write";

/** `value` is what test/golden/NAME.golden.json holds. */
export function matchesGolden(name: string, value: unknown): void {
  const path = fileURLToPath(new URL(`../golden/${name}.golden.json`, import.meta.url));
  const text = `${JSON.stringify(value, null, 2)}\n`;
  if (isWriting) writeFileSync(path, text);
  else assert.equal(text, readFileSync(path, "utf8"), `${name}: if it is meant, npm run golden`);
}

/** A value's form without its content: names of types, one element for a list. */
export function shapeOf(value: unknown): unknown {
  if (value === null) return "null";
  if (Array.isArray(value)) return value.length === 0 ? [] : unionOf(value.map(shapeOf));
  if (typeof value !== "object") return typeof value;
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, shapeOf(one)]));
}

/** The distinct shapes among a list's elements, in a stable order. */
function unionOf(shapes: readonly unknown[]): unknown[] {
  const distinct = new Map(shapes.map((shape) => [JSON.stringify(shape), shape]));
  return [...distinct].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, shape]) => shape);
}
