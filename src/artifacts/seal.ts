// SPDX-License-Identifier: Apache-2.0
// Sealing: one walk over a cache that turns what lies there into a manifest. Nothing is copied or
// packed. Links, special files, half-written and changing files are left out, each with its reason; only a
// checkpoint's links are followed, as far as its family says (`WholeRules.linkRoot`).
// Blocking; the agent runs it on a worker thread (seal-worker.ts).

import fs from "node:fs";
import path from "node:path";
import { chunkBytes } from "../core/pieces.ts";
import { RelightError } from "../errors.ts";
import { errnoOf, fromNodeError } from "../platform/node-errors.ts";
import { type Family, isOfFamily } from "./family.ts";
import { hashHandle } from "./hash-file.ts";
import {
  encodeManifest,
  type ManifestFile,
  manifestLimits,
  type SealedManifest,
} from "./manifest.ts";
import { collisionKey, ownFolder, unsafePath } from "./paths.ts";
import { isSpooled, portableFile, type Spooled } from "./portable-file.ts";
import { groupMembers, isGroupFile } from "./rebase-group.ts";

/** A sealed file as it lay on disk, so that a server can tell whether it still does. */
export interface SealedFile {
  readonly entry: ManifestFile;
  /** Size on disk; differs from the entry's for a rooted file. */
  readonly diskSize: number;
  readonly mtimeNs: bigint;
  readonly inode: bigint;
  /** Absolute; where the bytes lie when a link stands under the entry's path. */
  readonly realPath?: string;
  /** The portable form of a rooted file: in memory, or on disk when it is large. */
  readonly portable?: Buffer;
  readonly spooled?: Spooled;
}

export interface Skipped {
  readonly path: string;
  readonly reason: string;
  /** Worth another look soon: still settling, or changed while it was read. */
  readonly isTransient: boolean;
}

export interface Seal {
  readonly manifest: SealedManifest;
  /** In the manifest's order. */
  readonly files: readonly SealedFile[];
  readonly skipped: readonly Skipped[];
}

export interface SealOptions {
  readonly root: string;
  readonly family: Family;
  /** Relative folders that other caches own. */
  readonly excluded: readonly string[];
  /** Files touched after this moment (Unix milliseconds) are still settling. */
  readonly settledBeforeMs: number;
  /** The last seal's files by path; one whose stamp is unchanged is not read again. */
  readonly known?: ReadonlyMap<string, SealedFile>;
}

/**
 * The artifact that lies under `root` now; null when there is nothing to seal.
 * @throws RelightError what the disk answered, or `manifest_invalid` when the tree is beyond the limits.
 */
export function seal(options: SealOptions): Seal | null {
  const skipped: Skipped[] = [];
  const sealed: SealedFile[] = [];
  const buffer = Buffer.allocUnsafe(chunkBytes);
  for (const found of walk(options, skipped)) {
    const file = sealFile(found, options, { buffer, skipped });
    if (file !== null) sealed.push(file);
    if (sealed.length > manifestLimits.filesMax) {
      throw new RelightError(
        "manifest_invalid",
        `Cannot seal "${options.root}": more than ${manifestLimits.filesMax} files`,
      );
    }
  }
  const files = dropBrokenGroups(dropCollisions(sealed, skipped), skipped);
  if (files.length === 0) return null;
  const byPath = new Map(files.map((file) => [file.entry.path, file]));
  const manifest = encodeManifest({
    family: options.family.name,
    files: files.map(({ entry }) => entry),
  });
  const ordered = manifest.files.flatMap(({ path: name }) => byPath.get(name) ?? []);
  return { manifest, files: ordered, skipped };
}

/** Every regular file of a cache that is not temporary, by relative path; nothing is read. */
export function listCache(cache: SealPlace): string[] {
  return findFiles(cache).map(({ path: relative }) => relative);
}

/** The same with where each file's bytes lie. */
export function findFiles(cache: SealPlace): FoundFile[] {
  return [...walk(cache, [])];
}

type SealPlace = Pick<SealOptions, "root" | "family" | "excluded">;

export interface FoundFile {
  /** Relative to the root. */
  readonly path: string;
  /** Absolute, without links in its last name; given where a link stands under `path`. */
  readonly realPath?: string;
}

function* walk(options: SealPlace, skipped: Skipped[]): Generator<FoundFile> {
  const excluded = new Set([ownFolder, ...options.excluded]);
  const folders = [""];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    for (const item of listFolder(path.join(options.root, folder))) {
      const relative = folder === "" ? item.name : `${folder}/${item.name}`;
      if (excluded.has(relative)) continue;
      if (item.isDirectory()) {
        if (!options.family.isTemporary(relative)) folders.push(relative);
        continue;
      }
      const reason = reasonToLeave(relative, options.family);
      const found = reason === null ? findFile(relative, item, options) : reason;
      if (typeof found === "string") skipped.push(leave(relative, found));
      else yield found;
    }
  }
}

function reasonToLeave(relative: string, family: Family): string | null {
  if (family.isTemporary(relative)) return "temporary";
  if (!isOfFamily(family, relative)) return "not of this family";
  return family.whole?.refuse(relative) ?? null;
}

/** The file, or why what stands there is none. */
function findFile(
  relative: string,
  item: fs.Dirent,
  { root, family }: SealPlace,
): FoundFile | string {
  if (item.isFile()) return { path: relative };
  if (!item.isSymbolicLink()) return "not a regular file";
  return family.whole === undefined
    ? "a link"
    : followLink(relative, { root, within: family.whole.linkRoot(root) });
}

/** Only to a file, and only below `within`, with every link on the way resolved on both sides. */
function followLink(
  relative: string,
  { root, within }: { root: string; within: string },
): FoundFile | string {
  try {
    const realPath = fs.realpathSync(path.join(root, relative));
    const below = path.relative(fs.realpathSync(within), realPath);
    if (below.startsWith("..") || path.isAbsolute(below)) return "a link that leads elsewhere";
    return fs.statSync(realPath).isFile() ? { path: relative, realPath } : "a link to no file";
  } catch (error) {
    if (errnoOf(error) === "") throw error;
    return "a link to nothing";
  }
}

function listFolder(folder: string): fs.Dirent[] {
  try {
    return fs.readdirSync(folder, { withFileTypes: true });
  } catch (error) {
    // Compilers remove their temporary folders while we walk.
    if (errnoOf(error) === "ENOENT") return [];
    throw fromNodeError(error, `read "${folder}"`);
  }
}

function sealFile(
  found: FoundFile,
  options: SealOptions,
  state: { buffer: Buffer; skipped: Skipped[] },
): SealedFile | null {
  const relative = found.path;
  const unsafe = unsafePath(relative);
  if (unsafe !== null) return skip(state, leave(relative, unsafe));
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      const outcome = readFile(found, options, state.buffer);
      if (typeof outcome !== "string") return outcome;
      if (outcome === "settling") return skip(state, leave(relative, "still settling", true));
    } catch (error) {
      const reason = reasonToSkip(error);
      if (reason === null) throw error;
      return skip(state, leave(relative, reason));
    }
  }
  return skip(state, leave(relative, "changed while it was read", true));
}

/** The file's entry, or why there is none yet. */
function readFile(
  { path: relative, realPath }: FoundFile,
  options: SealOptions,
  buffer: Buffer,
): SealedFile | "settling" | "changed" {
  const file = realPath ?? path.join(options.root, relative);
  const at = realPath === undefined ? {} : { realPath };
  const handle = fs.openSync(
    file,
    fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK,
  );
  try {
    const before = fs.fstatSync(handle, { bigint: true });
    if (!before.isFile()) throw new RelightError("structure_invalid", "not a regular file");
    if (Number(before.mtimeMs) > options.settledBeforeMs) return "settling";
    const known = options.known?.get(relative);
    if (known !== undefined && isSameStamp(known, before) && isServable(known)) {
      const { realPath: earlier, ...rest } = known;
      return earlier === realPath ? known : { ...rest, ...at };
    }
    if (before.size > manifestLimits.fileBytesMax)
      throw new RelightError("structure_invalid", "larger than a manifest may hold");
    const content = options.family.isRooted(relative)
      ? readRooted(handle, Number(before.size), { root: options.root, path: relative, buffer })
      : hashPlain(handle, Number(before.size), buffer);
    const after = fs.fstatSync(handle, { bigint: true });
    const stamp = { diskSize: Number(before.size), mtimeNs: before.mtimeNs, inode: before.ino };
    if (content === null || !isSameStamp(stamp, after)) return "changed";
    const mode = (before.mode & 0o100n) === 0n ? 0o644 : 0o755;
    return {
      entry: {
        path: relative,
        mode,
        ...content.entry,
        ...(options.family.keepsTimes === true ? { modifiedMs: Number(before.mtimeMs) } : {}),
      },
      ...stamp,
      ...at,
      ...(content.portable ? { portable: content.portable } : {}),
      ...(content.spooled ? { spooled: content.spooled } : {}),
    };
  } finally {
    fs.closeSync(handle);
  }
}

interface Content {
  readonly entry: Pick<ManifestFile, "size" | "form" | "digest" | "chunks">;
  readonly portable?: Buffer;
  readonly spooled?: Spooled;
}

function readRooted(
  handle: number,
  size: number,
  at: { root: string; path: string; buffer: Buffer },
): Content | null {
  if (isGroupFile(at.path) && size > chunkBytes)
    throw new RelightError("structure_invalid", "a group file larger than a chunk");
  const portable =
    size > manifestLimits.rootedBytesMax ? null : portableFile(fs.readFileSync(handle), at);
  if (portable === null) return hashPlain(handle, size, at.buffer);
  const { bytes, spooled, ...hashed } = portable;
  return {
    entry: { form: "rooted", ...hashed },
    ...(bytes ? { portable: bytes } : {}),
    ...(spooled ? { spooled } : {}),
  };
}

function hashPlain(handle: number, size: number, buffer: Buffer): Content | null {
  const hashed = hashHandle(handle, size, buffer);
  return hashed === null ? null : { entry: { size, form: "plain", ...hashed } };
}

/** Whether a file that was sealed still lies there as it was; a link is followed. Nothing is read. */
export function isAsSealed(root: string, file: SealedFile): boolean {
  const full = path.join(root, file.entry.path);
  const now = fs.statSync(full, { bigint: true, throwIfNoEntry: false });
  return now !== undefined && isSameStamp(file, now);
}

function isSameStamp(
  known: Pick<SealedFile, "diskSize" | "mtimeNs" | "inode">,
  now: fs.BigIntStats,
): boolean {
  return (
    BigInt(known.diskSize) === now.size && known.mtimeNs === now.mtimeNs && known.inode === now.ino
  );
}

/** Its portable form may have been removed from disk. */
function isServable({ spooled }: SealedFile): boolean {
  return spooled === undefined || isSpooled(spooled);
}

/** A group that lists a file which is not sealed would be refused by every target. */
function dropBrokenGroups(files: readonly SealedFile[], skipped: Skipped[]): SealedFile[] {
  const paths = new Set(files.map(({ entry }) => entry.path));
  return files.filter(({ entry, portable }) => {
    if (portable === undefined || !isGroupFile(entry.path)) return true;
    if (groupMembers(portable).every((member) => paths.has(member))) return true;
    skipped.push(leave(entry.path, "lists a file that is not sealed", true));
    return false;
  });
}

function dropCollisions(files: readonly SealedFile[], skipped: Skipped[]): SealedFile[] {
  const seen = new Set<string>();
  return files.filter(({ entry }) => {
    const key = collisionKey(entry.path);
    if (!seen.has(key)) return seen.add(key);
    skipped.push(leave(entry.path, "its name differs from another only in case or normalisation"));
    return false;
  });
}

function reasonToSkip(error: unknown): string | null {
  if (error instanceof RelightError) return error.message;
  const errno = errnoOf(error);
  if (errno === "ENOENT") return "removed while it was read";
  if (errno === "ELOOP") return "replaced by a link";
  return errno === "EACCES" || errno === "EPERM" ? "not readable" : null;
}

function leave(relative: string, reason: string, isTransient = false): Skipped {
  return { path: relative, reason, isTransient };
}

function skip(state: { skipped: Skipped[] }, entry: Skipped): null {
  state.skipped.push(entry);
  return null;
}
