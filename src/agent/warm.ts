// SPDX-License-Identifier: Apache-2.0
// Warms one cache before the engine starts: under the cache's node lock, from whatever sources share
// its identity, one artifact after the other until nothing is missing that a peer has. Eight replicas
// of a node that start together make one transfer; the seven find the files in place. A failure leaves
// a marker, so that the seven do not repeat it one after the other.

import type { Cache } from "../artifacts/families.ts";
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
import { PieceSet } from "../core/pieces.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import type { PieceFetcher, Staging } from "../transport/transport.ts";
import { type ArtifactSources, type Candidate, groupByArtifact, shuffled } from "./candidates.ts";
import type { ClaimCache, ClaimedCache } from "./claimed-cache.ts";
import type { CacheRecord, Ledger, SourceUse } from "./ledger.ts";
import type { Relay } from "./relay.ts";

/** Long enough that the other ranks of a node see it, short enough that a restart a minute later tries again. */
const markerMs = 30_000;
export interface WarmOptions {
  readonly cache: Cache;
  readonly candidates: readonly Candidate[];
  /** Asks the coordinator again, while pieces are missing. */
  readonly search: (signal: AbortSignal) => Promise<readonly Candidate[]>;
  readonly claim: ClaimCache;
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
  using claimed = await ledger.phase(`lock ${cache.family.name}`, () =>
    options.claim(cache, { clock, signal }),
  );
  const marker = claimed.readMarker(clock.wallMs());
  // One from the future is older than a jump of the clock: it must not keep the cache cold.
  if (marker !== null && marker.expiresAtMs <= clock.wallMs() + markerMs) {
    throw new RelightError(
      "attempt_failed_recently",
      `Cannot try again yet: ${marker.code}: ${marker.message}`,
    );
  }
  try {
    for (const artifact of groupByArtifact(options.candidates))
      await warmFrom(artifact, claimed, options);
    claimed.removeMarker();
  } catch (thrown) {
    const { code, message } = asRelightError(thrown);
    if (code !== "cancelled")
      claimed.writeMarker({ code, message, expiresAtMs: clock.wallMs() + markerMs });
    throw thrown;
  }
  record.state = record.fetched > 0 ? "installed" : "present";
}

async function warmFrom(
  artifact: ArtifactSources,
  claimed: ClaimedCache,
  options: WarmOptions,
): Promise<void> {
  const { ledger, record, cache, relay } = options;
  const name = cache.family.name;
  const manifest = await ledger.phase(`manifest ${name}`, () => fetchManifest(artifact, options));
  const files = claimed.missing(manifest);
  record.artifactId ??= manifest.artifactId;
  record.offered += manifest.files.length;
  record.alreadyThere += manifest.files.length - files.length;
  if (files.length === 0) return;
  const staging = claimed.stage(files);
  try {
    await ledger.phase(`fetch ${name}`, () =>
      fetchFiles({ artifact, manifest, files, tree: staging.tree }, options),
    );
    const installed = await ledger.phase(`install ${name}`, () =>
      claimed.install({
        staging,
        manifest,
        files,
        sources: artifact.sources.map(({ endpoint }) => endpoint),
        nowMs: options.clock.wallMs(),
      }),
    );
    record.fetched += installed.receipt.files.length;
    record.kept += installed.kept.length;
    const paths = new Set(installed.receipt.files.map((file) => file.path));
    const offered = claimed.offered(manifest, paths);
    await relay.installed({ family: cache.family, manifest, files: offered });
  } catch (thrown) {
    await relay.dropped({ family: cache.family, artifactId: manifest.artifactId });
    claimed.unstage(staging);
    throw thrown;
  }
}

async function fetchManifest(
  artifact: ArtifactSources,
  options: WarmOptions,
): Promise<SealedManifest> {
  const failures: string[] = [];
  for (const { endpoint } of shuffled(artifact.sources, options.random)) {
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
    search: async (stop) =>
      (await options.search(stop)).filter(({ artifactId }) => artifactId === manifest.artifactId),
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
