// SPDX-License-Identifier: Apache-2.0
// Installing an artifact into a cache: private staging inside the cache's own root, then checks, then a
// journal, then placing, then a receipt. A crash before the journal leaves nothing; after it, the next
// start places the rest. Everything here runs under the cache's node lock.

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { PieceSet } from "../core/pieces.ts";
import { RelightError } from "../errors.ts";
import { listNames, makeFolders } from "../platform/files.ts";
import { errnoOf, fromNodeError } from "../platform/node-errors.ts";
import type { Finishing } from "../transport/transport.ts";
import type { TrustReceipt } from "../trust/receipt.ts";
import type { Manifest, ManifestFile, SealedManifest } from "./manifest.ts";
import { ownFolder } from "./paths.ts";
import { placeTree } from "./place.ts";
import { fromPortable } from "./rebase.ts";
import {
  ownPaths,
  type Receipt,
  readJournal,
  removeJournal,
  writeJournal,
  writeReceipt,
} from "./receipt.ts";
import { checkStructure } from "./structure.ts";
import { uninstall } from "./uninstall.ts";

/** Installed files are read for the first time when their access time passes this far behind. */
const accessLagMs = 3_600_000;

export interface Staging {
  /** Absolute; files lie below under their manifest paths. */
  readonly tree: string;
}

/** For the fetcher of a manifest's files, so that it gives them the times that their receipt will name. */
export function finishingOf(manifest: Manifest, nowMs: number): Finishing {
  const modifiedMs = Math.floor(nowMs / 1_000) * 1_000;
  // Access before modification: the first read then moves it, also under relatime, and proves a hit.
  const accessMs = modifiedMs - accessLagMs;
  return { accessMs, modifiedMs, finished: new PieceSet(manifest.files.length) };
}

export interface Installed {
  readonly receipt: Receipt;
  /** Relative paths where the target had a file of its own, which stays. */
  readonly kept: readonly string[];
}

/**
 * Makes the cache's root and Relight's folder in it.
 * @returns the root with links resolved: a cache folder that is a link to another place is the user's choice.
 * @throws RelightError `target_obstructed` when something else stands there, or what the disk answered.
 */
export function openRoot(root: string): string {
  try {
    makeFolders(root);
    const real = fs.realpathSync(root);
    const { own, staging, receipts } = ownPaths(real);
    for (const folder of [own, staging, receipts]) openOwnFolder(folder);
    return real;
  } catch (error) {
    if (errnoOf(error) === "EEXIST") {
      throw new RelightError("target_obstructed", `Cannot use "${root}": it is not a folder`, {
        cause: error,
      });
    }
    throw fromNodeError(error, `use "${root}" as a cache`);
  }
}

/** Private, with the folders that `files` need; fresh unless it is given a `name` that it had before. */
export function createStaging(
  root: string,
  files: readonly Pick<ManifestFile, "path">[],
  name = randomBytes(8).toString("hex"),
): Staging {
  const tree = path.join(ownPaths(root).staging, name);
  try {
    fs.mkdirSync(tree, { mode: 0o700, recursive: true });
    for (const folder of foldersOf(files)) fs.mkdirSync(`${tree}/${folder}`, { recursive: true });
    return { tree };
  } catch (error) {
    throw fromNodeError(error, `make a staging folder in "${root}"`);
  }
}

/** Each folder that a file lies in directly, the root as "". */
function foldersOf(files: readonly Pick<ManifestFile, "path">[]): ReadonlySet<string> {
  const folders = new Set<string>();
  let last = "";
  for (const file of files) {
    // In a manifest's order the files of one folder follow each other.
    if (isDirectlyIn(last, file.path)) continue;
    last = file.path.slice(0, Math.max(0, file.path.lastIndexOf("/")));
    folders.add(last);
  }
  return folders;
}

function isDirectlyIn(folder: string, file: string): boolean {
  return folder !== "" && file.startsWith(folder) && file.lastIndexOf("/") === folder.length;
}

/** Files of the manifest for which the target has none. Looks at no file of a folder that is not there. */
export function missingFiles(root: string, manifest: SealedManifest): ManifestFile[] {
  const folders = new Map<string, boolean>();
  const isThere = (relative: string) =>
    fs.lstatSync(`${root}/${relative}`, { throwIfNoEntry: false }) !== undefined;
  const hasFolder = (folder: string): boolean => {
    if (folder === "") return true;
    const parent = folder.slice(0, Math.max(0, folder.lastIndexOf("/")));
    const known = folders.get(folder) ?? (hasFolder(parent) && isThere(folder));
    folders.set(folder, known);
    return known;
  };
  let last = "";
  let isLastThere = true;
  return manifest.files.filter(({ path: name }) => {
    if (!isDirectlyIn(last, name)) {
      last = name.slice(0, Math.max(0, name.lastIndexOf("/")));
      isLastThere = hasFolder(last);
    }
    return !isLastThere || !isThere(name);
  });
}

/**
 * Checks what was staged, turns portable files into this root's, and gives everything its final name.
 * @param files the files that were staged: verified byte by byte against the manifest
 * @param finishing what the fetcher was given, by position in the manifest; without it all is done here
 * @throws RelightError `structure_invalid` or `path_unsafe` before anything is visible; disk errors at any time.
 */
export function installStaged(options: {
  root: string;
  staging: Staging;
  manifest: SealedManifest;
  files: readonly ManifestFile[];
  sources: readonly string[];
  /** What was proved of it; not given when nobody asked. */
  trust?: TrustReceipt | null;
  finishing?: Finishing;
  nowMs: number;
}): Installed {
  const { root, staging, manifest, files, nowMs } = options;
  const finishing = options.finishing ?? finishingOf(manifest, nowMs);
  const left = unfinished(manifest, files, finishing);
  const members = new Set(left.length === 0 ? [] : manifest.files.map((file) => file.path));
  for (const file of left) prepareFile(file, { root, staging, members, finishing });
  const receipt: Receipt = {
    format: "relight.receipt.v1",
    artifactId: manifest.artifactId,
    family: manifest.family,
    installedAtMs: nowMs,
    sources: [...options.sources],
    trust: options.trust ?? null,
    files: files.map((file) => ({
      path: file.path,
      form: file.form,
      size: file.size,
      digest: file.digest,
      mtimeMs: modifiedMsOf(file, finishing),
    })),
  };
  const text = JSON.stringify(receipt);
  writeJournal(root, { stagingName: path.basename(staging.tree), receipt }, text);
  const { kept } = placeTree(staging.tree, root);
  const final = conclude(root, { tree: staging.tree, receipt, text, dropped: new Set(kept) });
  return { receipt: final, kept };
}

/** Its own where its cache keeps times; never later than now, so that no peer can date a file ahead. */
function modifiedMsOf(file: ManifestFile, { modifiedMs }: Finishing): number {
  return Math.min(file.modifiedMs ?? modifiedMs, modifiedMs);
}

/** What is left to do of `files`: the fetcher does not change a file, nor knows of times of its own. */
function unfinished(
  manifest: Manifest,
  files: readonly ManifestFile[],
  { finished }: Finishing,
): ManifestFile[] {
  const staged = new Set(files);
  return manifest.files.filter(
    (file, at) =>
      staged.has(file) &&
      (file.form === "rooted" || file.modifiedMs !== undefined || !finished.has(at)),
  );
}

/**
 * What a crash left: completes an installation whose journal was written, removes every other staging.
 * @param isAllowed asked before anything of a journal gets its final name; what a refused one had placed
 *   already is taken back
 * @param keepsStagings whether transfers that did not end are left for who resumes them
 * @returns true when an installation was completed
 */
export function recoverRoot(
  root: string,
  isAllowed: (receipt: Receipt) => boolean,
  keepsStagings = false,
): boolean {
  const { staging } = ownPaths(root);
  const journal = readJournal(root);
  const tree = journal === null ? null : path.join(staging, journal.stagingName);
  const isWanted = journal !== null && isAllowed(journal.receipt);
  const canFinish = isWanted && tree !== null && fs.existsSync(tree);
  if (canFinish) recover(root, tree, journal.receipt);
  else if (journal !== null && !isWanted) uninstall(root, journal.receipt);
  removeJournal(root);
  if (!keepsStagings) removeStagings(root, null);
  return canFinish;
}

/** Every staging of the root but `kept`. */
export function removeStagings(root: string, kept: Staging | null): void {
  const { staging } = ownPaths(root);
  for (const name of listNames(staging)) {
    const tree = path.join(staging, name);
    if (tree !== kept?.tree) fs.rmSync(tree, { recursive: true, force: true });
  }
}

export function removeStaging(staging: Staging): void {
  fs.rmSync(staging.tree, { recursive: true, force: true });
}

/** A crash inside placeTree lost the list of what it had placed; what has the time that we gave is ours. */
function recover(root: string, tree: string, receipt: Receipt): void {
  const dropped = new Set(placeTree(tree, root).kept);
  for (const file of receipt.files) if (!isOurs(root, file)) dropped.add(file.path);
  conclude(root, { tree, receipt, text: JSON.stringify(receipt), dropped });
}

/** Everything has its final name, except what was `dropped`. @returns the receipt as it was written. */
function conclude(
  root: string,
  placed: { tree: string; receipt: Receipt; text: string; dropped: ReadonlySet<string> },
): Receipt {
  const { tree, receipt, text, dropped } = placed;
  const isWhole = dropped.size === 0;
  const files = isWhole ? receipt.files : receipt.files.filter((file) => !dropped.has(file.path));
  const final = { ...receipt, files };
  if (isWhole) writeReceipt(root, receipt, text);
  else writeReceipt(root, final);
  removeJournal(root);
  fs.rmSync(tree, { recursive: true, force: true });
  return final;
}

function isOurs(root: string, file: Receipt["files"][number]): boolean {
  const stat = fs.lstatSync(path.join(root, file.path), { throwIfNoEntry: false });
  return stat?.isFile() === true && stat.mtimeMs === file.mtimeMs;
}

function prepareFile(
  file: ManifestFile,
  context: {
    root: string;
    staging: Staging;
    members: ReadonlySet<string>;
    finishing: Finishing;
  },
): void {
  const { root, staging, members, finishing } = context;
  const staged = path.join(staging.tree, file.path);
  try {
    if (file.form === "rooted") {
      // Beside it, under a name that no manifest has: whoever is being served from staging at this moment
      // reads the old bytes to their end.
      const own = path.join(staging.tree, ownFolder);
      const bytes = fromPortable(fs.readFileSync(staged), { root, path: file.path }, members);
      fs.writeFileSync(own, bytes, { flag: "wx" });
      fs.renameSync(own, staged);
    }
    checkStructure(staging.tree, file.path);
    fs.chmodSync(staged, file.mode);
    const modifiedMs = modifiedMsOf(file, finishing);
    fs.utimesSync(staged, new Date(modifiedMs - accessLagMs), new Date(modifiedMs));
  } catch (error) {
    throw fromNodeError(error, `prepare "${file.path}"`);
  }
}

function openOwnFolder(folder: string): void {
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  const stat = fs.lstatSync(folder);
  if (!stat.isDirectory() || stat.uid !== process.getuid?.()) {
    throw new RelightError(
      "target_obstructed",
      `Cannot use "${folder}": it is a link or belongs to somebody else`,
    );
  }
}
