// SPDX-License-Identifier: Apache-2.0
// The manifest: which files an artifact has, with path, mode, size, digest and chunk digests. Its
// canonical bytes are its identity. Decoding is the one place where a foreign manifest is checked;
// everything behind it may rely on what `decodeManifest` promises.

import { z } from "zod";
import {
  blake3Hex,
  chunkedDigest,
  type Digest,
  type Hex32,
  isDigest,
  isHex32,
  wholeDigestPrefix,
} from "../core/digest.ts";
import { chunkBytes, type Piece } from "../core/pieces.ts";
import { GiB, MiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import { scanManifest } from "./manifest-scan.ts";
import { collisionKey, unsafePath } from "./paths.ts";

export const manifestFormat = "relight.artifact.v1";

/** What a target accepts. Beyond the largest cache known by a factor of ten, and safe to hold in memory. */
export const manifestLimits = {
  bytesMax: 128 * MiB,
  filesMax: 400_000,
  fileBytesMax: 64 * GiB,
  /** A rooted file is held in memory while it is changed. */
  rootedBytesMax: 256 * MiB,
  totalBytesMax: 2_048 * GiB,
} as const;

/**
 * How a file travels. `plain`: the bytes as they lie on disk. `rooted`: a file that names its cache's
 * root, with the root replaced by a token (src/artifacts/rebase.ts); size and digest are of that form.
 */
export type Form = "plain" | "rooted";

export interface ManifestFile {
  /** Relative to the cache's root, with `/`, checked by `unsafePath`. */
  readonly path: string;
  /** Permission bits: 0o644 or 0o755, nothing else. */
  readonly mode: 0o644 | 0o755;
  /**
   * Modification time in Unix milliseconds, rounded down; only where the cache's own tool compares times
   * (`Family.keepsTimes`). Installed no later than the clock says.
   */
  readonly modifiedMs?: number;
  /** In bytes, of the form that travels. */
  readonly size: number;
  readonly form: Form;
  readonly digest: Digest;
  /** One digest for each `chunkBytes` of a larger file; empty for a file of one chunk. */
  readonly chunks: readonly Hex32[];
}

export interface Manifest {
  readonly family: string;
  /** In ascending order of path by UTF-16 code units, so that equal trees have equal bytes. */
  readonly files: readonly ManifestFile[];
}

export interface SealedManifest extends Manifest {
  /** Digest of `bytes`. */
  readonly artifactId: Hex32;
  readonly bytes: Buffer;
}

/** Files are looked at one by one in `fileProblem`: a schema takes ten times as long for 20,000. */
const manifestShape = z.strictObject({
  format: z.literal(manifestFormat),
  family: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/),
  files: z.custom<readonly unknown[]>(Array.isArray, "want a list"),
});

/** In the order of the canonical form. */
const fileKeys = ["chunks", "digest", "form", "mode", "path", "size"] as const;
const timedFileKeys = ["chunks", "digest", "form", "mode", "modifiedMs", "path", "size"] as const;

/** The canonical bytes and the id of a manifest. `files` may come in any order. */
export function encodeManifest(manifest: Manifest): SealedManifest {
  return encodeOrdered({ family: manifest.family, files: manifest.files.toSorted(byPath) });
}

function encodeOrdered({ family: name, files }: Manifest): SealedManifest {
  const list = files.map(fileText).join(",");
  const family = JSON.stringify(name);
  const text = `{"family":${family},"files":[${list}],"format":"${manifestFormat}"}`;
  const bytes = Buffer.from(text, "utf8");
  return { family: name, files, bytes, artifactId: blake3Hex(bytes) };
}

/** Canonical, spelled here: the engine's own writer takes three times as long for 20,000 files. */
function fileText({ path, mode, modifiedMs, size, form, digest, chunks }: ManifestFile): string {
  const list = chunks.length === 0 ? "" : `"${chunks.join('","')}"`;
  const time = modifiedMs === undefined ? "" : `"modifiedMs":${modifiedMs},`;
  return `{"chunks":[${list}],"digest":"${digest}","form":"${form}","mode":${mode},${time}"path":${JSON.stringify(path)},"size":${size}}`;
}

/**
 * A manifest from foreign bytes, every promise of the types above checked: limits, shape, safe and
 * distinct paths (also where case and normalisation are folded), no file in a file's place, order,
 * sizes that agree with chunks, digests of the right kind, canonical spelling.
 * @throws RelightError `manifest_invalid`, `path_unsafe` or `digest_mismatch`.
 */
export function decodeManifest(bytes: Buffer, wanted: { artifactId: string }): SealedManifest {
  if (bytes.length > manifestLimits.bytesMax)
    invalid(`${bytes.length} bytes, want at most ${manifestLimits.bytesMax}`);
  const artifactId = blake3Hex(bytes);
  if (artifactId !== wanted.artifactId) {
    throw new RelightError(
      "digest_mismatch",
      `Cannot accept manifest: digest is ${artifactId}, wanted ${wanted.artifactId}`,
    );
  }
  const scanned = scanManifest(bytes.toString("latin1"), manifestFormat);
  if (scanned !== null) {
    checkManifest(scanned);
    return { ...scanned, bytes, artifactId };
  }
  const sealed = sealForeign(parse(bytes));
  if (!sealed.bytes.equals(bytes)) invalid("its spelling is not canonical");
  return sealed;
}

/** A manifest whose shape was checked elsewhere (statement.ts), held to every other promise. */
export function sealForeign(manifest: Manifest): SealedManifest {
  checkManifest(manifest);
  return encodeOrdered(manifest);
}

/** Before any of them is looked at. @throws RelightError `manifest_invalid`. */
export function checkFileCount(count: number): void {
  const { filesMax } = manifestLimits;
  if (count === 0 || count > filesMax) invalid(`${count} files, want 1 to ${filesMax}`);
}

function checkManifest({ files }: Manifest): void {
  checkFileCount(files.length);
  checkPaths(files);
  checkSizes(files);
}

/** All pieces in order: files in manifest order, chunks by offset. An empty file is one piece of length 0. */
export function listPieces(manifest: Manifest): Piece[] {
  return manifest.files.flatMap((file, fileIndex) => filePieces(file, fileIndex));
}

export function totalBytes(manifest: Manifest): number {
  return manifest.files.reduce((sum, file) => sum + file.size, 0);
}

function filePieces(file: ManifestFile, fileIndex: number): Piece[] {
  if (file.chunks.length === 0) {
    return [
      {
        fileIndex,
        offset: 0,
        length: file.size,
        digest: file.digest.slice(wholeDigestPrefix.length) as Hex32,
      },
    ];
  }
  return file.chunks.map((digest, chunk) => {
    const offset = chunk * chunkBytes;
    return { fileIndex, offset, length: Math.min(chunkBytes, file.size - offset), digest };
  });
}

function parse(bytes: Buffer): Manifest {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new RelightError("manifest_invalid", "Cannot read manifest: it is not JSON in UTF-8", {
      cause,
    });
  }
  const result = manifestShape.safeParse(json);
  if (!result.success) {
    const issue = result.error.issues[0];
    return invalid(`${issue?.path.join(".") ?? ""}: ${issue?.message ?? "wrong shape"}`);
  }
  const { family, files } = result.data;
  checkFileCount(files.length);
  files.forEach((file, at) => {
    const problem = fileProblem(file);
    if (problem !== null) invalid(`files.${at}: ${problem}`);
  });
  return { family, files: files as readonly ManifestFile[] };
}

/**
 * Why a foreign value has not the shape of a `ManifestFile`, nothing more and nothing less; null when it
 * has. Its keys are in the order of the canonical form.
 */
export function fileProblem(value: unknown): string | null {
  if (typeof value !== "object" || value === null) return "want an object";
  const keys = Object.keys(value);
  const wanted = keys.length === timedFileKeys.length ? timedFileKeys : fileKeys;
  if (keys.length !== wanted.length || !keys.every((key, at) => key === wanted[at]))
    return `want the keys ${timedFileKeys.join(", ")} in this order, or all but modifiedMs`;
  const { chunks, digest, form, mode, modifiedMs, path, size } = value as Partial<
    Record<(typeof timedFileKeys)[number], unknown>
  >;
  if (typeof path !== "string" || path === "" || path.length > 4_096) return "path: wrong length";
  if (mode !== 0o644 && mode !== 0o755) return "mode: want 420 or 493";
  if (wanted === timedFileKeys && !(Number.isSafeInteger(modifiedMs) && Number(modifiedMs) >= 0))
    return "modifiedMs: want milliseconds, 0 or more";
  if (!Number.isSafeInteger(size) || !isWithin(size, manifestLimits.fileBytesMax))
    return `size: want an integer of 0 to ${manifestLimits.fileBytesMax}`;
  if (form !== "plain" && form !== "rooted") return "form: want plain or rooted";
  if (typeof digest !== "string" || !isDigest(digest)) return "digest: wrong form";
  const areDigests =
    Array.isArray(chunks) && chunks.every((chunk) => typeof chunk === "string" && isHex32(chunk));
  return areDigests ? null : "chunks: want digests";
}

function isWithin(value: unknown, max: number): boolean {
  return typeof value === "number" && value >= 0 && value <= max;
}

function checkPaths(files: readonly ManifestFile[]): void {
  const keys = new Set<string>();
  /** Of the first file in each. */
  const folders = new Map<string, string>();
  let previous = "";
  let folder = "";
  for (const { path } of files) {
    const reason = unsafePath(path);
    if (reason !== null)
      throw new RelightError(
        "path_unsafe",
        `Cannot accept path ${JSON.stringify(path.slice(0, 200))}: ${reason}`,
      );
    if (path <= previous) invalid(`${JSON.stringify(path)} is repeated or out of order`);
    previous = path;
    const key = collisionKey(path);
    keys.add(key);
    const slash = key.lastIndexOf("/");
    // Files of one folder follow each other, so that most folders have been seen just before.
    if (slash === -1 || (slash === folder.length && key.startsWith(folder))) continue;
    folder = key.slice(0, slash);
    folders.set(folder, path);
  }
  if (keys.size < files.length) refuseCollision(files);
  for (const [name, path] of folders) {
    for (let slash = name.indexOf("/"); slash !== -1; slash = name.indexOf("/", slash + 1)) {
      if (keys.has(name.slice(0, slash))) refuseUnderFile(path);
    }
    if (keys.has(name)) refuseUnderFile(path);
  }
}

function refuseUnderFile(path: string): never {
  invalid(`${JSON.stringify(path)} lies under a path that is a file`);
}

/** Names the first path whose key another one before it has. */
function refuseCollision(files: readonly ManifestFile[]): never {
  const seen = new Map<string, string>();
  const second = files.find(({ path }) => {
    const key = collisionKey(path);
    if (seen.has(key)) return true;
    seen.set(key, path);
    return false;
  });
  const name = second?.path ?? "";
  return invalid(
    `${JSON.stringify(name)} collides with ${JSON.stringify(seen.get(collisionKey(name)))}`,
  );
}

function checkSizes(files: readonly ManifestFile[]): void {
  let total = 0;
  for (const { path, size, chunks, digest, form } of files) {
    total += size;
    const chunkCount = size > chunkBytes ? Math.ceil(size / chunkBytes) : 0;
    if (chunks.length !== chunkCount)
      invalid(`${JSON.stringify(path)} has ${chunks.length} chunks, its size wants ${chunkCount}`);
    if (form === "rooted" && size > manifestLimits.rootedBytesMax)
      invalid(`${JSON.stringify(path)} is rooted and larger than ${manifestLimits.rootedBytesMax}`);
    if (chunkCount > 0 ? digest !== chunkedDigest(chunks) : !digest.startsWith(wholeDigestPrefix))
      invalid(`${JSON.stringify(path)} has a digest that contradicts its chunks`);
  }
  if (total > manifestLimits.totalBytesMax)
    invalid(`${total} bytes in all, want at most ${manifestLimits.totalBytesMax}`);
}

function byPath(left: ManifestFile, right: ManifestFile): number {
  return left.path < right.path ? -1 : left.path > right.path ? 1 : 0;
}

function invalid(reason: string): never {
  throw new RelightError("manifest_invalid", `Cannot accept manifest: ${reason}`);
}
