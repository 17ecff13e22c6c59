// SPDX-License-Identifier: Apache-2.0
// An agent without an engine: publishes caches that lie on this node until it is stopped, or fetches
// them once. What `relight agent`, `relight artifact publish` and `relight artifact fetch` do.

import type { Environment } from "../artifacts/family.ts";
import { type BootRecord, Ledger } from "./ledger.ts";
import { type CacheParts, type CacheSettings, ReplicaCaches } from "./replica-caches.ts";

interface ServeOptions {
  readonly settings: CacheSettings;
  readonly parts: CacheParts;
  readonly nodeId: string;
}

/** Runs until `stop`. With `isInstalling`, takes first what peers have. @throws RelightError `config_invalid`. */
export async function serveCaches(
  env: Environment,
  options: ServeOptions & { isInstalling: boolean },
  stop: AbortSignal,
): Promise<void> {
  const { caches } = openCaches(env, options);
  await caches.prepare(options.isInstalling);
  await caches
    .publishUntil(stop, async () => {})
    .catch((thrown: unknown) => {
      if (!stop.aborted) throw thrown;
    });
}

/** @returns what became of each cache. @throws RelightError `config_invalid`. */
export async function fetchCaches(env: Environment, options: ServeOptions): Promise<BootRecord> {
  const { caches, ledger } = openCaches(env, options);
  await caches.prepare(true);
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
