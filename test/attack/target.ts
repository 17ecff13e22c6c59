// SPDX-License-Identifier: Apache-2.0
// The attacked replica: `relight run` as users start it, with an engine that writes down what it finds in
// its caches. Whatever was attempted, the engine must have started, and this says what with.

import fs from "node:fs";
import path from "node:path";
import { readBoots } from "../../src/agent/boot-store.ts";
import type { BootRecord, CacheRecord } from "../../src/agent/ledger.ts";
import { readReceipts } from "../../src/artifacts/receipt.ts";
import type { Code } from "../../src/errors.ts";
import type { Signer } from "../../src/trust/keys.ts";
import type { PolicyDocument } from "../../src/trust/policy.ts";
import { signPolicy } from "../../src/trust/setup.ts";
import { relight } from "../support/relight.ts";
import { model } from "./plan.ts";

export interface Target {
  readonly folder: string;
  cache(name: string): string;
  /** As an operator, or somebody who can write the file, would. */
  hands(document: PolicyDocument, roots: readonly Signer[]): void;
  /** @param until what the agent must have said before the engine looks into its caches */
  start(names: readonly string[], flags?: readonly string[], until?: RegExp): Promise<Start>;
}

/** How long the engine waits for `until`; then it goes on, and the attack is judged by what there is. */
const untilMsMax = 15_000;

export interface Start {
  readonly record: BootRecord;
  readonly output: string;
  /** Largest memory of the agent until the engine was started, in MiB. */
  readonly peakMiB: number;
  /** Files in each cache as the engine found them, Relight's own folder left out. */
  readonly found: ReadonlyMap<string, readonly string[]>;
  cacheRecord(name: string): CacheRecord;
  /** Every code that the record has about a cache. */
  codes(name: string): ReadonlySet<string>;
}

const engine = `
  i=0; while [ -n "$HOLD" ] && [ ! -e "$HOLD" ] && [ $i -lt 200 ]; do sleep 0.1; i=$((i+1)); done
  grep VmHWM /proc/$PPID/status > "$0"
  for each in "$@"; do echo "== $each"; (cd "$each" 2>/dev/null && find . -type f -not -path './.relight/*'); done
  true`;

/** @param coordinator host:port */
export function makeTarget(folder: string, coordinator: string): Target {
  const cache = (name: string) => path.join(folder, "caches", name);
  const trust = path.join(folder, "trust");
  const state = path.join(folder, "state");
  return {
    folder,
    cache,
    hands: (document, roots) => {
      fs.mkdirSync(trust, { recursive: true });
      fs.writeFileSync(path.join(trust, "policy.json"), signPolicy(document, roots));
    },
    start: async (names, flags = [], until) => {
      const memory = path.join(folder, "memory");
      const hold = path.join(folder, "said");
      const environment = until === undefined ? {} : { HOLD: hold };
      const words = [
        "run",
        `--coordinator-address=${coordinator}`,
        `--state-dir=${state}`,
        `--trust-dir=${trust}`,
        `--model=${model}`,
        "--families=none",
        "--publish=false",
        "--agent-silence-max=1s",
        "--budget=30s",
        "--fetch-budget=20s",
        ...names.map((name) => `--cache=${name}=${cache(name)}`),
        ...flags,
        "--",
        "sh",
        "-c",
        engine,
        memory,
        ...names.map(cache),
      ];
      await using run = relight(words, environment);
      if (until !== undefined) {
        await run.printed(until, untilMsMax).catch(() => {});
        fs.writeFileSync(hold, "");
      }
      const code = await run.exited;
      await run.drained;
      const [record] = readBoots(state, 1).boots;
      if (code !== 0 || record === undefined)
        throw new Error(`The engine did not start (${code}):\n${run.output()}`);
      return describeStart(record, { output: run.output(), memory, cache, names });
    },
  };
}

function describeStart(
  record: BootRecord,
  of: {
    readonly output: string;
    readonly memory: string;
    readonly names: readonly string[];
    cache(name: string): string;
  },
): Start {
  const kibibytes = /(\d+) kB/.exec(fs.readFileSync(of.memory, "utf8"))?.[1];
  const cacheRecord = (name: string) => {
    const found = record.caches.find(({ family }) => family === name);
    if (found === undefined) throw new Error(`No cache "${name}" is in the record`);
    return found;
  };
  return {
    record,
    output: of.output,
    peakMiB: Number(kibibytes) / 1_024,
    found: new Map(of.names.map((name) => [name, filesBelow(of.output, of.cache(name))])),
    cacheRecord,
    codes: (name) => {
      const { code, sources } = cacheRecord(name);
      return new Set(
        [
          code,
          ...sources.flatMap((source) => [source.code, ...Object.keys(source.failures)]),
        ].filter((each) => each !== null),
      );
    },
  };
}

function filesBelow(output: string, folder: string): string[] {
  const lines = output.split("\n");
  const from = lines.indexOf(`== ${folder}`);
  if (from === -1) throw new Error(`The engine did not look into "${folder}":\n${output}`);
  const rest = lines.slice(from + 1);
  const end = rest.findIndex((line) => line.startsWith("== "));
  return rest.slice(0, end === -1 ? undefined : end).filter((line) => line.startsWith("./"));
}

/** What is wrong with how an attack was met; null when nothing is. */
export function judge(
  { name, code }: { readonly name: string; readonly code: Code },
  start: Start,
  target: Target,
): string | null {
  const codes = start.codes(name);
  if (!codes.has(code)) return `wanted ${code}, the record has ${[...codes].join(", ") || "none"}`;
  if (start.cacheRecord(name).state !== "cold") return "the cache is not cold";
  return leftovers(name, start, target);
}

export function leftovers(name: string, start: Start, target: Target): string | null {
  const found = start.found.get(name) ?? [];
  if (found.length > 0) return `the engine found ${found.join(", ")}`;
  const root = target.cache(name);
  const receipts = readReceipts(root, () => {});
  if (receipts.length > 0) return `${receipts.length} receipts are left`;
  const staging = path.join(root, ".relight/staging");
  const staged = fs.existsSync(staging) ? fs.readdirSync(staging) : [];
  return staged.length > 0 ? "its staging is left" : null;
}
