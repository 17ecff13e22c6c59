// SPDX-License-Identifier: Apache-2.0
// Boot records on this node's disk, newest first, a bounded number of them.

import fs from "node:fs";
import path from "node:path";
import { MiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import { listNames, readSmall, writeWhole } from "../platform/files.ts";
import { type BootRecord, bootFormat } from "./ledger.ts";

const recordsMax = 200;
const recordBytesMax = 4 * MiB;

export function writeBoot(stateFolder: string, record: BootRecord): void {
  const folder = path.join(stateFolder, "boots");
  writeWhole(path.join(folder, `${record.bootId}.json`), JSON.stringify(record));
  for (const name of listRecords(folder).slice(recordsMax))
    fs.rmSync(path.join(folder, name), { force: true });
}

/** Newest first. A record of another format or that cannot be read is left out and counted. */
export function readBoots(
  stateFolder: string,
  limit: number,
): { boots: BootRecord[]; unreadable: number } {
  const folder = path.join(stateFolder, "boots");
  const read = listRecords(folder)
    .slice(0, limit)
    .map((name) => readBoot(path.join(folder, name)));
  const boots = read.filter((record) => record !== null);
  return { boots, unreadable: read.length - boots.length };
}

/** @throws RelightError `not_found` for an unknown id; an id may be shortened as long as it is unique. */
export function findBoot(stateFolder: string, id: string | undefined): BootRecord {
  const { boots } = readBoots(stateFolder, recordsMax);
  const matching =
    id === undefined ? boots.slice(0, 1) : boots.filter((boot) => boot.bootId.startsWith(id));
  const [boot] = matching;
  if (boot === undefined || matching.length > 1) {
    throw new RelightError(
      "not_found",
      `Cannot find boot "${id ?? "latest"}" in "${stateFolder}": ${matching.length} match`,
    );
  }
  return boot;
}

function listRecords(folder: string): string[] {
  return listNames(folder)
    .filter((name) => name.endsWith(".json"))
    .reverse();
}

function readBoot(file: string): BootRecord | null {
  try {
    const record = JSON.parse(
      readSmall(file, recordBytesMax)?.toString("utf8") ?? "null",
    ) as BootRecord | null;
    // Records of older versions know no weights.
    return record?.format === bootFormat ? { ...record, weights: record.weights ?? [] } : null;
  } catch {
    // One damaged record must not hide the others; the caller counts it.
    return null;
  }
}
