// SPDX-License-Identifier: Apache-2.0
// Warms one cache before the engine starts: under the cache's node lock, from whatever sources share
// its identity, one artifact after the other until nothing is missing that a peer has. Eight replicas
// of a node that start together make one transfer; the seven find the files in place. A failure leaves
// a marker, so that the seven do not repeat it one after the other.

import type { Cache } from "../artifacts/families.ts";
import type { Family } from "../artifacts/family.ts";
import { finishingOf } from "../artifacts/install.ts";
import { listPieces, type ManifestFile, type SealedManifest } from "../artifacts/manifest.ts";
import type { SourceReport } from "../artifacts/pull.ts";
import { startPull } from "../artifacts/pull-run.ts";
import { pullSettings } from "../artifacts/pull-state.ts";
import { checkSuffixes } from "../artifacts/structure.ts";
import type { PieceSet } from "../core/pieces.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import type { Finishing, PieceFetcher, Staging } from "../transport/transport.ts";
import { type ArtifactSources, type Candidate, groupByArtifact, shuffled } from "./candidates.ts";
import type { ClaimedCache, StagedTree } from "./claimed-cache.ts";
import type { CacheRecord, Ledger, SourceUse } from "./ledger.ts";
import { PullOrder } from "./pull-order.ts";
import type { Relay } from "./relay.ts";
import type { ArtifactTrust, Granted, Subject } from "./trust.ts";

/** Long enough that the other ranks of a node see it, short enough that a restart a minute later tries again. */
const markerMs = 30_000;
export interface WarmOptions {
  readonly cache: Cache;
  readonly candidates: readonly Candidate[];
  /** Asks the coordinator again, while pieces are missing. */
  readonly search: (signal: AbortSignal) => Promise<readonly Candidate[]>;
  /** Takes the cache's lock. */
  readonly claim: (signal: AbortSignal) => Promise<ClaimedCache>;
  readonly trust: ArtifactTrust;
  readonly subject: Subject;
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
  using claimed = await ledger.phase(`lock ${cache.family.name}`, () => options.claim(signal));
  const marker = claimed.readMarker(clock.wallMs());
  // One from the future is older than a jump of the clock: it must not keep the cache cold.
  if (marker !== null && marker.expiresAtMs <= clock.wallMs() + markerMs) {
    throw new RelightError(
      "attempt_failed_recently",
      `Cannot try again yet: ${marker.code}: ${marker.message}`,
    );
  }
  try {
    await warmFromAll(claimed, options);
    claimed.removeMarker();
  } catch (thrown) {
    const { code, message } = asRelightError(thrown);
    if (code !== "cancelled")
      claimed.writeMarker({ code, message, expiresAtMs: clock.wallMs() + markerMs });
    throw thrown;
  }
  record.state = record.fetched > 0 ? "installed" : "present";
}

/**
 * An artifact that is refused costs that artifact; it fails when none is left. Caches add up; of what
 * counts only whole the first that can be had is enough.
 */
async function warmFromAll(claimed: ClaimedCache, options: WarmOptions): Promise<void> {
  const failures: RelightError[] = [];
  const artifacts = groupByArtifact(options.candidates);
  for (const artifact of artifacts) {
    try {
      await warmFrom(artifact, claimed, options);
      if (options.cache.family.whole !== undefined) return;
    } catch (thrown) {
      options.signal.throwIfAborted();
      const error = asRelightError(thrown);
      if (error.facts.blame !== "remote") throw error;
      failures.push(error);
    }
  }
  const [first] = failures;
  if (first === undefined) return;
  if (failures.length === artifacts.length) throw first;
  // Something was had, so that this is no cold start; what was refused is told all the same.
  options.ledger.cold(options.record, first);
}

async function warmFrom(
  artifact: ArtifactSources,
  claimed: ClaimedCache,
  options: WarmOptions,
): Promise<void> {
  const { ledger, record, cache, relay } = options;
  const name = cache.family.name;
  const granted = await ledger.phase(`manifest ${name}`, () => askSources(artifact, options));
  const { manifest, statement, trust } = granted;
  checkSuffixes(cache.family, manifest);
  refuseUnwanted(cache.family, manifest);
  const files = await ledger.phase(`look ${name}`, () => claimed.missing(manifest, options.signal));
  record.artifactId ??= manifest.artifactId;
  record.offered += manifest.files.length;
  record.alreadyThere += manifest.files.length - files.length;
  if (files.length === 0) return;
  const staging = await claimed.stage(manifest, files, options.signal);
  const finishing = finishingOf(manifest, options.clock.wallMs());
  try {
    await ledger.phase(`fetch ${name}`, () =>
      fetchFiles({ artifact, granted, files, staging, finishing }, options),
    );
    withholdRooted(manifest, staging.verified);
    const installed = await ledger.phase(`install ${name}`, () =>
      claimed.install({
        staging,
        manifest,
        files,
        sources: artifact.sources.map(({ endpoint }) => endpoint),
        trust,
        statement,
        finishing,
        nowMs: options.clock.wallMs(),
      }),
    );
    if (trust !== null) await options.trust.remember(trust, options.signal);
    record.fetched += installed.receipt.files.length;
    record.kept += installed.kept.length;
    const paths = new Set(installed.receipt.files.map((file) => file.path));
    const offered = claimed.offered(manifest, paths);
    await relay.installed({ family: cache.family, manifest, statement, files: offered });
  } catch (thrown) {
    await relay.dropped({ family: cache.family, artifactId: manifest.artifactId });
    claimed.unstage(staging, asRelightError(thrown));
    throw thrown;
  }
}

/**
 * Files that name their root are about to be changed where they lie in staging. From there they are served
 * no more: a peer would get bytes that are not the manifest's, and blame us.
 */
export function withholdRooted(manifest: SealedManifest, have: PieceSet): void {
  for (const [index, { fileIndex }] of listPieces(manifest).entries())
    if (manifest.files[fileIndex]?.form === "rooted") have.remove(index);
}

/** One source after the other: what one of them cannot prove, another may. */
async function askSources(artifact: ArtifactSources, options: WarmOptions): Promise<Granted> {
  const { fetcher, subject, trust, record, signal } = options;
  const failures: { endpoint: string; error: RelightError }[] = [];
  for (const { endpoint } of shuffled(artifact.sources, options.random)) {
    try {
      const at = { endpoint, artifactId: artifact.artifactId as SealedManifest["artifactId"] };
      return await trust.grant({ fetcher, at, subject }, signal);
    } catch (thrown) {
      signal.throwIfAborted();
      const error = asRelightError(thrown);
      // Without a policy of our own no other source can help.
      if (error.facts.blame === "self") throw error;
      const { code } = error;
      record.sources.push({ endpoint, bytes: 0, pieces: 0, failures: { [code]: 1 }, code });
      failures.push({ endpoint, error });
    }
  }
  const [first] = failures;
  // Where all say the same, that is the reason; the list of sources is in the ledger.
  if (first !== undefined && failures.every(({ error }) => error.code === first.error.code))
    throw first.error;
  const reasons = failures.map(
    ({ endpoint, error }) => `${endpoint}: ${error.code}: ${error.message}`,
  );
  throw new RelightError(
    "sources_exhausted",
    `Cannot fetch the manifest of ${artifact.artifactId.slice(0, 12)}: ${reasons.join("; ")}`,
  );
}

async function fetchFiles(
  order: {
    artifact: ArtifactSources;
    granted: Granted;
    files: readonly ManifestFile[];
    staging: StagedTree;
    finishing: Finishing;
  },
  options: WarmOptions,
): Promise<void> {
  const { artifact, granted, files, staging, finishing } = order;
  const { manifest, statement } = granted;
  const { fetcher, record, signal, clock, random, relay, cache } = options;
  const pieces = listPieces(manifest);
  const wanted = new Set(files);
  const into: Staging = {
    root: staging.tree,
    files: manifest.files,
    pieces,
    have: staging.verified,
    finishing,
  };
  const needed = pieces.flatMap((piece, index) => {
    const file = manifest.files[piece.fileIndex];
    return file !== undefined && wanted.has(file) && !into.have.has(index) ? [index] : [];
  });
  record.resumedBytes += pieces.reduce(
    (sum, { length }, index) => (into.have.has(index) ? sum + length : sum),
    0,
  );
  const wishes = new PullOrder(cache, { manifest, into, needed });
  await relay.receiving({ family: cache.family, manifest, statement, staging: into });
  const pull = startPull({
    fetcher,
    artifactId: manifest.artifactId,
    sources: artifact.sources,
    search: async (stop) =>
      (await options.search(stop)).filter(({ artifactId }) => artifactId === manifest.artifactId),
    staging: into,
    wanted: needed,
    order: wishes.first,
    settings: pullSettings,
    clock,
    random,
    signal,
    onProgress: ({ pieces: done, bytes }) => {
      const later = wishes.later();
      if (later !== null) pull.reorder(later);
      options.onProgress({ family: cache.family.name, done, total: needed.length, bytes });
    },
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

/** @throws RelightError `code_unwanted` before a byte of it is fetched. */
function refuseUnwanted({ whole }: Family, { artifactId, files }: SealedManifest): void {
  if (whole === undefined) return;
  for (const { path } of files) {
    const reason = whole.refuse(path);
    if (reason !== null)
      throw new RelightError(
        "code_unwanted",
        `Cannot take artifact ${artifactId.slice(0, 12)}: it holds "${path}": ${reason}`,
      );
  }
}

function sourceUse({ endpoint, bytes, pieces, failures, dropped }: SourceReport): SourceUse {
  return { endpoint, bytes, pieces, failures, code: dropped?.code ?? null };
}
