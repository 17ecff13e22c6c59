// SPDX-License-Identifier: Apache-2.0
// Proof that what was installed was used. Installed files get an access time before their
// modification time, so the first read moves it, also under relatime. Where the mount keeps no access
// times the answer is unknown, never zero.

import fs from "node:fs";
import path from "node:path";
import type { Family } from "./family.ts";
import type { Receipt } from "./receipt.ts";

export interface Hits {
  /** Installed units of which at least one file was read; null when access times are not kept. */
  readonly hit: number | null;
  /** Units that were installed. */
  readonly installed: number;
  /** Units in the cache now that were neither installed nor there before the engine started. */
  readonly compiledAnyway: number;
}

/** Whether a read moves the access time on this mount: tried with a file of our own. */
export function keepsAccessTimes(folder: string): boolean {
  const file = path.join(folder, `.atime-${process.pid}`);
  try {
    fs.writeFileSync(file, "x", { mode: 0o600 });
    const mtime = new Date(Date.now() - 60_000);
    fs.utimesSync(file, new Date(mtime.getTime() - 3_600_000), mtime);
    fs.readFileSync(file);
    const isKept = fs.statSync(file).atimeMs > mtime.getTime();
    fs.rmSync(file);
    return isKept;
  } catch {
    // A mount where we cannot try is one whose times we cannot trust.
    return false;
  }
}

/** Units of the family among `files`. */
export function unitsOf(family: Family, files: Iterable<string>): Set<string> {
  const units = new Set<string>();
  for (const file of files) {
    const unit = family.unitOf(file);
    if (unit !== null) units.add(unit);
  }
  return units;
}

/** What became of the installed files, by looking at the disk once. */
export function countHits(options: {
  root: string;
  family: Family;
  receipts: readonly Receipt[];
  before: ReadonlySet<string>;
  now: Iterable<string>;
}): Hits {
  const { root, family, receipts, before, now } = options;
  const isTimed = keepsAccessTimes(path.join(root, ".relight"));
  const installed = new Set<string>();
  const read = new Set<string>();
  for (const file of receipts.flatMap((receipt) => receipt.files)) {
    const unit = family.unitOf(file.path);
    if (unit === null) continue;
    installed.add(unit);
    const stat = fs.lstatSync(path.join(root, file.path), { throwIfNoEntry: false });
    if (stat !== undefined && stat.atimeMs > file.mtimeMs) read.add(unit);
  }
  const compiled = [...unitsOf(family, now)].filter(
    (unit) => !installed.has(unit) && !before.has(unit),
  );
  return {
    hit: isTimed ? read.size : null,
    installed: installed.size,
    compiledAnyway: compiled.length,
  };
}
