// SPDX-License-Identifier: Apache-2.0
// `relight doctor` on the engine's side: its Python, and the folders of the caches that it would use.

import { accessSync, constants, existsSync, statfsSync } from "node:fs";
import path from "node:path";
import { probeFacts } from "../agent/probe.ts";
import { type Cache, chooseCaches } from "../artifacts/families.ts";
import type { Facts } from "../artifacts/family.ts";
import { mergeFacts } from "../artifacts/identity.ts";
import { customFamily } from "../artifacts/kinds/custom.ts";
import type { Environment } from "../config/kinds.ts";
import type { Config } from "../config/schema.ts";
import { formatBytes } from "../core/units.ts";
import { startDeadline } from "../platform/deadline.ts";
import { fromNodeError } from "../platform/node-errors.ts";
import { type Finding, fail, ok, unknown, warn } from "./doctor-finding.ts";

/** What is worth saying of an engine's Python, in this order. */
const told = ["torch", "cuda", "triton", "flashinfer", "deep_gemm", "gpu_arch"] as const;

export async function examineEngine(options: {
  readonly config: Config;
  readonly environment: Environment;
  readonly signal: AbortSignal;
}): Promise<readonly Finding[]> {
  const { config, environment, signal } = options;
  const python = config["run.python"] ?? "python3";
  const budgetMs = config["run.discover_budget"];
  using deadline = startDeadline("the probe", budgetMs, signal);
  try {
    const probed = await probeFacts({
      command: [],
      python,
      framework: "",
      env: environment,
      signal: deadline.signal,
    });
    const facts = mergeFacts(probed.facts);
    return [checkPython(python, { facts, failures: probed.failures }), checkCaches(facts, options)];
  } catch (thrown) {
    return [
      { ...fail("python", thrown), status: "warn", next: nextForPython },
      checkCaches(mergeFacts(), options),
    ];
  }
}

const nextForPython =
  "Name the engine's own with --python (run.python); without it, identities lack its versions.";

function checkPython(
  python: string,
  { facts, failures }: { facts: Facts; failures: Readonly<Record<string, string>> },
): Finding {
  const check = "python";
  const known = told.filter((name) => facts[name] !== "").map((name) => `${name} ${facts[name]}`);
  const detail = [`${python} (${facts.python})`, ...known].join(", ");
  const failed = Object.entries(failures).map(([name, reason]) => `${name}: ${reason}`);
  if (failed.length > 0)
    return warn(check, `${detail}; not known: ${failed.join("; ")}`, {
      next: "A fact that is unknown on one replica and known on another keeps the two apart.",
    });
  return known.length === 0
    ? unknown(check, `${detail} has no PyTorch or Triton`, nextForPython)
    : ok(check, detail);
}

/** Each cache's folder, or the nearest one above it that is there. */
function checkCaches(
  facts: Facts,
  { config, environment }: { readonly config: Config; readonly environment: Environment },
): Finding {
  const check = "caches";
  try {
    const caches = chooseCaches({
      env: environment,
      facts,
      named: config["run.families"],
      custom: config["run.cache"].map(({ name, value }) => customFamily(name, value)),
    });
    return caches.length === 0
      ? unknown(
          check,
          "this Python uses none that Relight knows",
          "Name one with --cache NAME=DIR, or families with --families.",
        )
      : ok(check, caches.map(textOf).join(", "));
  } catch (thrown) {
    return fail(check, thrown);
  }
}

/** @throws RelightError `target_obstructed` or a `disk_` code: the cache would stay cold. */
function textOf({ family, root }: Cache): string {
  let folder = root;
  while (!existsSync(folder) && folder !== path.dirname(folder)) folder = path.dirname(folder);
  try {
    // With the dot, so that a file in a folder's place is noticed.
    const { bavail, bsize } = statfsSync(`${folder}/.`);
    accessSync(folder, constants.W_OK | constants.X_OK);
    return `${family.name} in ${root} (${formatBytes(bavail * bsize)} free)`;
  } catch (cause) {
    throw fromNodeError(cause, `use "${root}" for ${family.name}`);
  }
}
