// SPDX-License-Identifier: Apache-2.0
// A boot record as people read it: the waterfall of its phases, and sentences that say why it was
// slow or cold. Pure: the same record gives the same text.

import { count, formatBytes, formatMs } from "../core/units.ts";
import { type Code, codes } from "../errors.ts";
import {
  type BootRecord,
  type CacheRecord,
  outcomeOf,
  type Phase,
  type WeightRecord,
} from "./ledger.ts";

const barWidth = 40;

export function drawWaterfall(record: BootRecord): string {
  const endMs = Math.max(1, ...record.phases.map((phase) => phase.endMs ?? phase.startMs));
  const nameWidth = Math.max(...record.phases.map((phase) => phase.name.length), 0);
  const lines = record.phases.map((phase) => {
    const time = phase.endMs === null ? "unfinished" : formatMs(phase.endMs - phase.startMs);
    const failure = phase.code === null ? "" : `  ${phase.code}`;
    return `  ${phase.name.padEnd(nameWidth)} |${drawBar(phase, endMs)}| ${time.padStart(7)}${failure}`;
  });
  const caches = record.caches.map(drawCache);
  return [drawHead(record), ...lines, ...caches, ...record.weights.map(drawWeights)].join("\n");
}

/** Sentences, the most important first. `earlier` are other boots of this node, newest first. */
export function explainBoot(record: BootRecord, earlier: readonly BootRecord[]): string[] {
  return [
    explainOutcome(record, earlier),
    ...explainTrust(record),
    ...explainCode(record.code, record.reason),
    ...explainNoCaches(record),
    ...record.caches.flatMap(explainCache),
    ...record.weights.flatMap(explainWeights),
    ...explainSlowest(record),
    ...(record.unknownFacts.length === 0
      ? []
      : [
          `Unknown facts: ${record.unknownFacts.join(", ")}. Two replicas that both lack them exchange all the same; name them with run.* settings.`,
        ]),
  ];
}

/** Milliseconds against this node's last cold start of the same program and model; null when there is none. */
export function savedMs(record: BootRecord, earlier: readonly BootRecord[]): number | null {
  const cold = earlier.find(
    (boot) =>
      boot.program === record.program &&
      boot.model === record.model &&
      boot.healthyMs !== null &&
      outcomeOf(boot) === "cold",
  );
  return cold?.healthyMs == null || record.healthyMs === null
    ? null
    : cold.healthyMs - record.healthyMs;
}

function drawHead(record: BootRecord): string {
  const started = new Date(record.startedAtMs).toISOString().slice(0, 19).replace("T", " ");
  const healthy =
    record.healthyMs === null ? "not healthy" : `healthy after ${formatMs(record.healthyMs)}`;
  return `boot ${record.bootId}  ${outcomeOf(record)}, ${healthy}  ${record.model || "-"} on ${record.nodeId}  ${started} UTC`;
}

function drawBar(phase: Phase, endMs: number): string {
  const from = Math.min(barWidth - 1, Math.floor((phase.startMs / endMs) * barWidth));
  const to = Math.max(from + 1, Math.ceil(((phase.endMs ?? endMs) / endMs) * barWidth));
  return (
    " ".repeat(from) +
    (phase.code === null ? "=" : "x").repeat(to - from) +
    " ".repeat(barWidth - to)
  );
}

function drawCache(cache: CacheRecord): string {
  const parts = [
    `${cache.offered} offered`,
    `${cache.fetched} fetched (${formatBytes(cache.fetchedBytes)})`,
    `${cache.alreadyThere} already there`,
    ...(cache.hits === null
      ? []
      : [
          hitText(cache.hits.hit, cache.hits.installed),
          `${cache.hits.compiledAnyway} compiled anyway`,
        ]),
    ...(cache.retries === 0 ? [] : [`${cache.retries} retried`]),
  ];
  return `  ${cache.family}: ${cache.state}${cache.code === null ? "" : ` (${cache.code})`}; ${parts.join(", ")}`;
}

function drawWeights(weights: WeightRecord): string {
  const { part, state, code, tensors, bytes, copyMs, offered, transports } = weights;
  const by = transports.length === 0 ? "" : ` by ${[...new Set(transports)].join(", ")}`;
  const parts = [
    count(tensors, "tensor"),
    ...(copyMs === null
      ? []
      : [`${formatBytes(bytes)} copied${by} and verified in ${formatMs(copyMs)}`]),
    ...(offered === null ? [] : [`offered as generation ${offered.generation}`]),
  ];
  return `  weights ${part}: ${state}${code === null ? "" : ` (${code})`}; ${parts.join(", ")}`;
}

function hitText(hit: number | null, installed: number): string {
  return hit === null
    ? "hits unknown (no access times on this mount)"
    : `${hit} of ${installed} installed hit`;
}

function explainOutcome(record: BootRecord, earlier: readonly BootRecord[]): string {
  const healthy =
    record.healthyMs === null
      ? "was never seen healthy"
      : `was healthy after ${formatMs(record.healthyMs)}`;
  const saved = savedMs(record, earlier);
  const gain =
    saved === null
      ? ""
      : saved > 0
        ? `, ${formatMs(saved)} sooner than the last cold start here`
        : `, no sooner than the last cold start here`;
  return `This start was ${outcomeOf(record)} and ${healthy}${gain}.`;
}

function explainTrust({ trust }: BootRecord): string[] {
  return trust?.mode === "insecure"
    ? [
        "Trust was switched off with --trust=insecure: whatever a peer offered was installed and run, signed or not.",
      ]
    : [];
}

function explainNoCaches({ caches, code }: BootRecord): string[] {
  return caches.length > 0 || code !== null
    ? []
    : [
        "No cache was exchanged: the engine's Python has no compiler that Relight knows. Name a cache with `--cache NAME=DIR`, or look with `relight doctor`.",
      ];
}

function explainCode(code: Code | null, reason: string | null): string[] {
  return code === null
    ? []
    : [`Nothing was installed: ${reason}. ${codes[code].means} ${codes[code].next}`];
}

function explainCache(cache: CacheRecord): string[] {
  const sentences: string[] = [];
  if (cache.code !== null)
    sentences.push(`${cache.family} is ${cache.state}: ${cache.reason}. ${codes[cache.code].next}`);
  for (const source of cache.sources.filter((one) => one.code !== null)) {
    sentences.push(
      `${cache.family}: source ${source.endpoint} was given up (${source.code}) after ${formatBytes(source.bytes)}.`,
    );
  }
  for (const { artifactId, files, code } of cache.undone ?? []) {
    sentences.push(
      `${cache.family}: ${count(files, "file")} of artifact ${artifactId.slice(0, 12)} were taken back (${code}); the engine compiled them again.`,
    );
  }
  const { hits } = cache;
  if (hits !== null && hits.hit === 0 && hits.installed > 0) {
    sentences.push(
      `${cache.family}: ${count(hits.installed, "installed unit")} arrived and none was read: the engine's keys differ from the source's. Compare both with \`relight boot show\`.`,
    );
  }
  if (hits !== null && hits.compiledAnyway > 0 && cache.state !== "cold") {
    sentences.push(
      `${cache.family}: ${hits.compiledAnyway} compiled anyway; the next replica gets them as a delta.`,
    );
  }
  return sentences;
}

function explainWeights(weights: WeightRecord): string[] {
  const { part, state, code, reason, bytes, copyMs, sources, failures } = weights;
  const sentences = failures.map(
    (failure) =>
      `weights ${part}: source ${failure.source} was given up (${failure.code}): ${failure.message}.`,
  );
  if (state === "loaded")
    sentences.unshift(
      `The ${part} weights came from ${count(sources.length, "live replica")}: ${formatBytes(bytes)} in ${formatMs(copyMs ?? 0)}, every tensor verified.`,
    );
  if (code !== null)
    sentences.unshift(
      `The ${part} weights did not come from a live replica: ${reason}. ${codes[code].next}`,
    );
  return sentences;
}

function explainSlowest(record: BootRecord): string[] {
  const [slowest] = record.phases
    .filter((phase) => phase.name !== "publish" && phase.endMs !== null)
    .toSorted((left, right) => lengthOf(right) - lengthOf(left));
  return slowest === undefined
    ? []
    : [`Most time went to "${slowest.name}": ${formatMs(lengthOf(slowest))}.`];
}

function lengthOf(phase: Phase): number {
  return (phase.endMs ?? phase.startMs) - phase.startMs;
}
