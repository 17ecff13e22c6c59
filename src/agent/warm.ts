// SPDX-License-Identifier: Apache-2.0
// Warms one cache before the engine starts: under the cache's node lock, from whatever sources share
// its identity, one artifact after the other until nothing is missing that a peer has. Eight replicas
// of a node that start together make one transfer; the seven find the files in place. A failure leaves
// a marker, so that the seven do not repeat it one after the other.

import type { Cache } from "../artifacts/families.ts";
import {
  createStaging,
  installStaged,
  missingFiles,
  openRoot,
  recoverRoot,
  removeStaging,
} from "../artifacts/install.ts";
import {
  decodeManifest,
  listPieces,
  type ManifestFile,
  manifestLimits,
  type SealedManifest,
} from "../artifacts/manifest.ts";
import type { SourceReport } from "../artifacts/pull.ts";
import { startPull } from "../artifacts/pull-run.ts";
import { pullSettings } from "../artifacts/pull-state.ts";
import { ownPaths, readMarker, removeMarker, writeMarker } from "../artifacts/receipt.ts";
import { PieceSet } from "../core/pieces.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import { claimNodeLock } from "../platform/node-lock.ts";
import type { PieceFetcher, Staging } from "../transport/transport.ts";
import type { CacheRecord, Ledger, SourceUse } from "./ledger.ts";
import type { Relay } from "./relay.ts";

/** Long enough that the other ranks of a node see it, short enough that a restart a minute later tries again. */
const markerMs = 30_000;
/** Distinct artifacts that one boot takes a look at; the largest come first. */
const artifactsMax = 4;

/** What the coordinator told about one source. */
export interface Candidate {
  readonly artifactId: string;
  readonly endpoint: string;
  readonly totalBytes: number;
  readonly isComplete: boolean;
}

export interface WarmOptions {
  readonly cache: Cache;
  readonly candidates: readonly Candidate[];
  readonly fetcher: PieceFetcher;
  readonly relay: Relay;
  readonly ledger: Ledger;
  readonly record: CacheRecord;
  readonly clock: Clock;
  readonly random: () => number;
  readonly onProgress: (progress: {
    family: string;
    done: number;
    total: number;
    bytes: number;
  }) => void;
  readonly signal: AbortSignal;
}

/** @throws RelightError why the cache stays cold; `record` then has the same code and reason. */
export async function warmCache(options: WarmOptions): Promise<void> {
  const { cache, clock, signal, record, ledger } = options;
  const name = cache.family.name;
  const root = openRoot(cache.root);
  using _lock = await ledger.phase(`lock ${name}`, () =>
    claimNodeLock(ownPaths(root).lock, { clock, signal }),
  );
  recoverRoot(root);
  const marker = readMarker(root, clock.wallMs());
  if (marker !== null) {
    throw new RelightError(
      "attempt_failed_recently",
      `Cannot try again yet: ${marker.code}: ${marker.message}`,
    );
  }
  try {
    for (const artifact of groupByArtifact(options.candidates))
      await warmFrom(artifact, root, options);
    removeMarker(root);
  } catch (thrown) {
    const { code, message } = asRelightError(thrown);
    if (code !== "cancelled")
      writeMarker(root, { code, message, expiresAtMs: clock.wallMs() + markerMs });
    throw thrown;
  }
  record.state = record.fetched > 0 ? "installed" : "present";
}

/** Cleans up what an earlier crash left, also where no peer has anything. */
export async function recoverCache(cache: Cache, clock: Clock, signal: AbortSignal): Promise<void> {
  const root = openRoot(cache.root);
  using _lock = await claimNodeLock(ownPaths(root).lock, { clock, signal });
  recoverRoot(root);
}

interface ArtifactSources {
  readonly artifactId: string;
  readonly sources: readonly Candidate[];
}

/** Complete ones first, then the largest: it most likely has what the others have. */
function groupByArtifact(candidates: readonly Candidate[]): ArtifactSources[] {
  const groups = Map.groupBy(candidates, (candidate) => candidate.artifactId);
  const ranked = [...groups].sort(([, left], [, right]) => rank(right) - rank(left));
  return ranked.slice(0, artifactsMax).map(([artifactId, sources]) => ({ artifactId, sources }));
}

function rank(group: readonly Candidate[]): number {
  const [first] = group;
  return (group.some((candidate) => candidate.isComplete) ? 2 ** 50 : 0) + (first?.totalBytes ?? 0);
}

async function warmFrom(
  artifact: ArtifactSources,
  root: string,
  options: WarmOptions,
): Promise<void> {
  const { ledger, record, cache, relay } = options;
  const name = cache.family.name;
  const manifest = await ledger.phase(`manifest ${name}`, () => fetchManifest(artifact, options));
  const files = missingFiles(root, manifest);
  record.artifactId ??= manifest.artifactId;
  record.offered += manifest.files.length;
  record.alreadyThere += manifest.files.length - files.length;
  if (files.length === 0) return;
  const staging = createStaging(root, files);
  try {
    await ledger.phase(`fetch ${name}`, () =>
      fetchFiles({ artifact, manifest, files, tree: staging.tree }, options),
    );
    const installed = await ledger.phase(`install ${name}`, () =>
      installStaged({
        root,
        staging,
        manifest,
        files,
        sources: artifact.sources.map(({ endpoint }) => endpoint),
        nowMs: options.clock.wallMs(),
      }),
    );
    record.fetched += installed.receipt.files.length;
    record.kept += installed.kept.length;
    await relay.installed({
      family: cache.family,
      root,
      manifest,
      installed: new Set(installed.receipt.files.map((file) => file.path)),
    });
  } catch (thrown) {
    await relay.dropped(manifest.artifactId);
    removeStaging(staging);
    throw thrown;
  }
}

async function fetchManifest(
  artifact: ArtifactSources,
  options: WarmOptions,
): Promise<SealedManifest> {
  const failures: string[] = [];
  for (const { endpoint } of artifact.sources) {
    try {
      const at = { endpoint, artifactId: artifact.artifactId as SealedManifest["artifactId"] };
      const bytes = await options.fetcher.manifest(
        at,
        { bytesMax: manifestLimits.bytesMax },
        options.signal,
      );
      const manifest = decodeManifest(bytes, artifact);
      if (manifest.family !== options.cache.family.name) {
        throw new RelightError(
          "manifest_invalid",
          `Cannot use manifest: it is of family "${manifest.family}", wanted "${options.cache.family.name}"`,
        );
      }
      return manifest;
    } catch (thrown) {
      options.signal.throwIfAborted();
      const { code, message } = asRelightError(thrown);
      options.record.sources.push({ endpoint, bytes: 0, pieces: 0, failures: { [code]: 1 }, code });
      failures.push(`${endpoint}: ${code}: ${message}`);
    }
  }
  throw new RelightError(
    "sources_exhausted",
    `Cannot fetch the manifest of ${artifact.artifactId.slice(0, 12)}: ${failures.join("; ")}`,
  );
}

async function fetchFiles(
  order: {
    artifact: ArtifactSources;
    manifest: SealedManifest;
    files: readonly ManifestFile[];
    tree: string;
  },
  options: WarmOptions,
): Promise<void> {
  const { artifact, manifest, files, tree } = order;
  const { fetcher, record, signal, clock, random, relay, cache } = options;
  const pieces = listPieces(manifest);
  const wanted = new Set(files);
  const into: Staging = {
    root: tree,
    files: manifest.files,
    pieces,
    have: new PieceSet(pieces.length),
  };
  const needed = pieces.flatMap((piece, index) => {
    const file = manifest.files[piece.fileIndex];
    return file !== undefined && wanted.has(file) ? [index] : [];
  });
  await relay.receiving({ family: cache.family, manifest, staging: into });
  const pull = startPull({
    fetcher,
    artifactId: manifest.artifactId,
    sources: artifact.sources,
    staging: into,
    wanted: needed,
    settings: pullSettings,
    clock,
    random,
    signal,
    onProgress: ({ pieces: done, bytes }) =>
      options.onProgress({ family: cache.family.name, done, total: needed.length, bytes }),
  });
  try {
    await pull.done;
  } finally {
    const report = pull.report();
    record.sources.push(...report.sources.map(sourceUse));
    record.fetchedBytes += report.bytes;
    record.retries += report.retries;
  }
}

function sourceUse({ endpoint, bytes, pieces, failures, dropped }: SourceReport): SourceUse {
  return { endpoint, bytes, pieces, failures, code: dropped?.code ?? null };
}
