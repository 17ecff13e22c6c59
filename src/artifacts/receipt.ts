// SPDX-License-Identifier: Apache-2.0
// Receipts, journals and failure markers: small files in Relight's own folder inside a cache's root.
// A receipt says what an installation placed; a journal, that placing began; a marker, that an attempt
// failed a moment ago and need not be repeated by every process of the node.

import fs from "node:fs";
import path from "node:path";
import { z } from "zod";
import { isDigest } from "../core/digest.ts";
import { MiB } from "../core/units.ts";
import { type Code, codes, RelightError } from "../errors.ts";
import { listNames, readSmall, writeWhole } from "../platform/files.ts";
import { trustReceiptShape } from "../trust/receipt.ts";
import { ownFolder, unsafePath } from "./paths.ts";

const bytesMax = 256 * MiB;
/** Of an author's envelope beside its receipt. */
const statementSuffix = ".dsse";
const relativePath = z.string().refine((text) => unsafePath(text) === null);

const receiptShape = z.strictObject({
  format: z.literal("relight.receipt.v1"),
  artifactId: z.string().regex(/^[0-9a-f]{64}$/),
  family: z.string(),
  installedAtMs: z.int(),
  sources: z.array(z.string()),
  /** Who vouched for it under which policy; null when it was installed without asking. */
  trust: trustReceiptShape.nullable().default(null),
  /** What was placed, with the modification time it was given (ms): the proof of a hit compares with it. */
  files: z.array(
    z.strictObject({
      path: relativePath,
      /** Of the form that travelled, as are size and digest. */
      form: z.enum(["plain", "rooted"]),
      size: z.int(),
      digest: z.string().refine(isDigest),
      mtimeMs: z.number(),
    }),
  ),
});
const markerShape = z.strictObject({
  code: z.string().refine((code): code is Code => code in codes),
  message: z.string(),
  expiresAtMs: z.int(),
});
const journalShape = z.strictObject({
  stagingName: z.string().regex(/^[0-9a-f]{16}$/),
  receipt: receiptShape,
});

export type Receipt = z.infer<typeof receiptShape>;
export type Journal = z.infer<typeof journalShape>;
export type FailureMarker = z.infer<typeof markerShape>;

/** Where things lie under a cache's root. */
export function ownPaths(root: string) {
  const own = path.join(root, ownFolder);
  return {
    own,
    lock: path.join(own, "lock"),
    staging: path.join(own, "staging"),
    journal: path.join(own, "journal.json"),
    receipts: path.join(own, "receipts"),
    marker: path.join(own, "failed.json"),
  };
}

/** @param text the receipt as JSON, where it has been made already: it may have 400,000 files */
export function writeReceipt(root: string, receipt: Receipt, text = JSON.stringify(receipt)): void {
  writeWhole(path.join(ownPaths(root).receipts, `${receipt.artifactId}.json`), text);
}

/** With the statement that was kept beside it. */
export function removeReceipt(root: string, { artifactId }: Receipt): void {
  for (const suffix of [statementSuffix, ".json"])
    fs.rmSync(path.join(ownPaths(root).receipts, `${artifactId}${suffix}`), { force: true });
}

/** Keeps the author's envelope beside the receipt, so that it can be handed on after a restart. */
export function writeStatement(root: string, artifactId: string, statement: Buffer): void {
  writeWhole(path.join(ownPaths(root).receipts, `${artifactId}${statementSuffix}`), statement);
}

/** Null when none was kept. */
export function readStatement(root: string, { artifactId }: Receipt): Buffer | null {
  const file = path.join(ownPaths(root).receipts, `${artifactId}${statementSuffix}`);
  return readSmall(file, bytesMax);
}

/** Every readable receipt; one that cannot be read is reported and ignored, never trusted. */
export function readReceipts(root: string, onInvalid: (error: RelightError) => void): Receipt[] {
  const folder = ownPaths(root).receipts;
  return listNames(folder)
    .filter((name) => name.endsWith(".json"))
    .flatMap((name) => {
      try {
        return [parse(path.join(folder, name), receiptShape) ?? []].flat();
      } catch (error) {
        onInvalid(error as RelightError);
        return [];
      }
    });
}

/** @param text the journal's receipt as JSON, as in `writeReceipt` */
export function writeJournal(
  root: string,
  { stagingName, receipt }: Journal,
  text = JSON.stringify(receipt),
): void {
  writeWhole(ownPaths(root).journal, `{"stagingName":"${stagingName}","receipt":${text}}`);
}

/** Null when there is none or it cannot be trusted; both mean: nothing may be rolled forward. */
export function readJournal(root: string): Journal | null {
  try {
    return parse(ownPaths(root).journal, journalShape);
  } catch {
    return null;
  }
}

export function removeJournal(root: string): void {
  fs.rmSync(ownPaths(root).journal, { force: true });
}

export function writeMarker(root: string, marker: FailureMarker): void {
  writeWhole(ownPaths(root).marker, JSON.stringify(marker));
}

/** The marker of a recent failure; null when there is none or it expired. */
export function readMarker(root: string, nowMs: number): FailureMarker | null {
  try {
    const marker = parse(ownPaths(root).marker, markerShape);
    // A clock that jumped back must not keep a marker alive: none lives longer than an hour.
    return marker !== null && marker.expiresAtMs > nowMs && marker.expiresAtMs < nowMs + 3_600_000
      ? marker
      : null;
  } catch {
    return null;
  }
}

export function removeMarker(root: string): void {
  fs.rmSync(ownPaths(root).marker, { force: true });
}

function parse<T>(file: string, shape: z.ZodType<T>): T | null {
  const bytes = readSmall(file, bytesMax);
  if (bytes === null) return null;
  try {
    return shape.parse(JSON.parse(bytes.toString("utf8")));
  } catch (cause) {
    throw new RelightError(
      "receipt_invalid",
      `Cannot read "${file}": it is not what Relight wrote`,
      { cause },
    );
  }
}
