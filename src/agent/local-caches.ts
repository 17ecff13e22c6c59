// SPDX-License-Identifier: Apache-2.0
// Looking at this node's caches without a coordinator: which there are, what would be sealed, what was
// installed, and whether it still is what was installed.

import fs from "node:fs";
import path from "node:path";
import { type Cache, chooseCaches } from "../artifacts/families.ts";
import type { Environment } from "../artifacts/family.ts";
import { mergeFacts } from "../artifacts/identity.ts";
import { type Receipt, readReceipts } from "../artifacts/receipt.ts";
import { type Seal, seal } from "../artifacts/seal.ts";
import { installedDigest } from "../artifacts/uninstall.ts";
import type { RelightError } from "../errors.ts";
import type { CacheSettings } from "./replica-caches.ts";

export interface LocalCache {
  readonly cache: Cache;
  /** What lies there now; null when there is nothing. */
  readonly seal: Seal | null;
  readonly receipts: readonly Receipt[];
}

/** The caches that the settings name, or whose folder exists. @throws RelightError `config_invalid`. */
export function findCaches(
  env: Environment,
  settings: Pick<CacheSettings, "families" | "customCaches">,
): Cache[] {
  // Without an engine nobody says which compilers it uses: every family whose folder exists counts.
  const facts = mergeFacts({
    framework: "vllm",
    torch: "?",
    triton: "?",
    deep_gemm: "?",
    flashinfer: "?",
    tilelang: "?",
    cutlass_dsl: "?",
    tvm_ffi: "?",
  });
  const caches = chooseCaches({
    env,
    facts,
    named: settings.families,
    custom: settings.customCaches,
  });
  return caches.filter(({ root }) => fs.existsSync(root));
}

export function readCache(cache: Cache, onInvalid: (error: RelightError) => void): LocalCache {
  const sealed = seal({ ...cache, settledBeforeMs: Number.POSITIVE_INFINITY });
  return { cache, seal: sealed, receipts: readReceipts(cache.root, onInvalid) };
}

export interface Verified {
  readonly path: string;
  readonly state: "ok" | "changed" | "gone";
}

/** Every installed file against the digest it was installed with, read from disk anew. */
export function verifyInstalled(root: string, receipt: Receipt): Verified[] {
  return receipt.files.map((file) => ({ path: file.path, state: verifyFile(root, file) }));
}

function verifyFile(root: string, file: Receipt["files"][number]): Verified["state"] {
  const full = path.join(root, file.path);
  if (!fs.lstatSync(full, { throwIfNoEntry: false })?.isFile()) return "gone";
  return installedDigest(full, root, file) === file.digest ? "ok" : "changed";
}
