// SPDX-License-Identifier: Apache-2.0
// An agent without an engine: publishes caches that lie on this node until it is stopped, or fetches
// them once. What `relight agent`, `relight artifact publish` and `relight artifact fetch` do.

import type { Environment } from "../artifacts/family.ts";
import { type BootRecord, Ledger } from "./ledger.ts";
import { type CacheParts, type CacheSettings, ReplicaCaches } from "./replica-caches.ts";
import {
  type OpenReplicaWeights,
  openReplicaWeights,
  type WeightHoldings,
} from "./replica-weights.ts";

interface ServeOptions {
  readonly settings: CacheSettings;
  readonly parts: CacheParts & WeightHoldings;
  readonly nodeId: string;
}

/** Runs until `stop`. With `isInstalling`, takes first what peers have. @throws RelightError `config_invalid`. */
export async function serveCaches(
  env: Environment,
  options: ServeOptions & { isInstalling: boolean },
  stop: AbortSignal,
): Promise<void> {
  const { caches, ledger } = openCaches(env, options);
  const prepared = caches.prepare(options.isInstalling, stop);
  await using _weights = openWeights(options, { ledger, prepared });
  await prepared;
  await caches
    .publishUntil(stop, async () => {})
    .catch((thrown: unknown) => {
      if (!stop.aborted) throw thrown;
    });
}

/** For engines that somebody else starts. @throws RelightError when the socket cannot be opened. */
function openWeights(
  { parts, settings }: ServeOptions,
  { ledger, prepared }: { readonly ledger: Ledger; readonly prepared: Promise<void> },
): OpenReplicaWeights | null {
  const { weights, narrator } = parts;
  if (weights === null) return null;
  const whenWarm = () => prepared;
  const options = { ledger, settings, whenWarm, onChange: () => {} };
  const opened = openReplicaWeights({ ...parts, weights }, options);
  narrator.say(`engines hand over weights at ${opened.socket}`);
  return opened;
}

/** @returns what became of each cache. @throws RelightError `config_invalid`. */
export async function fetchCaches(
  env: Environment,
  options: ServeOptions,
  stop: AbortSignal,
): Promise<BootRecord> {
  const { caches, ledger } = openCaches(env, options);
  await caches.prepare(true, stop);
  return ledger.record;
}

function openCaches(env: Environment, { settings, parts, nodeId }: ServeOptions) {
  const ledger = new Ledger({
    clock: parts.clock,
    nodeId,
    model: settings.facts.model ?? "",
    program: "",
    trust: parts.trust.summary,
  });
  return { ledger, caches: new ReplicaCaches({ command: [], env }, { settings, parts, ledger }) };
}
