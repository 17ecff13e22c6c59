// SPDX-License-Identifier: Apache-2.0
// What a peer's caches are worth to a real torch.compile engine (examples/torch-engine), measured on a
// machine with a GPU: A starts cold, B and C start warm from peers under other cache roots, each
// through `relight run`. The reference is A's own root started again twice: the first such start still
// compiles what the cold one never stored, the second is the limit that C is held against. Nobody sees
// the folders of the others (a mount namespace each): PyTorch's entries can name them, and would be
// read there. Warm starts are repeated BOOT_ROUNDS times, every round from the same caches of A.

import type { ChildProcess } from "node:child_process";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import {
  canHide,
  endReplica,
  lengths,
  type Replica,
  replicas,
  type Start,
  startCoordinator,
  startEngine,
  startReplica,
} from "./boot-starts.ts";

const roundCount = Number(process.env["BOOT_ROUNDS"] ?? "1");
const cacheFolders = ["inductor", "triton"] as const;

type Emit = (line: {
  name: string;
  value: number;
  unit: string;
  baseline?: number;
  ratio?: number;
}) => void;

interface Starts {
  readonly a: Start;
  readonly b: readonly Start[];
  readonly c: readonly Start[];
  readonly again: readonly Start[];
  readonly limit: readonly Start[];
}

/** @throws when there is no GPU with PyTorch: then there is nothing to measure. */
export async function run(emit: Emit): Promise<void> {
  execFileSync("python3", ["-c", "import torch; assert torch.cuda.is_available()"], {
    stdio: "inherit",
  });
  // Given: kept, so that what was compiled can be looked at afterwards.
  const kept = process.env["BOOT_FOLDER"];
  const folder = kept ?? fs.mkdtempSync(path.join(os.tmpdir(), "relight-boot-"));
  for (const name of replicas) makeHome(folder, name);
  emit({ name: "boot.isolated", value: canHide ? 1 : 0, unit: "bool" });
  emit({ name: "boot.prompt_lengths", value: lengths.split(",").length, unit: "lengths" });
  const coordinator = startCoordinator(folder);
  try {
    report(emit, await startAll(folder));
  } finally {
    await endReplica(coordinator);
    if (kept === undefined) fs.rmSync(folder, { recursive: true, force: true });
  }
}

async function startAll(folder: string): Promise<Starts> {
  const children: ChildProcess[] = [];
  try {
    const a = await startReplica("a", { folder, children, port: 18411 });
    note("a", a);
    const warm = await repeat((round) => startWarm(folder, round));
    await endReplica(children[0]);
    const own = await startOwnRoot(folder);
    return {
      a,
      b: warm.map(({ b }) => b),
      c: warm.map(({ c }) => c),
      again: own.map(({ again }) => again),
      limit: own.map(({ limit }) => limit),
    };
  } finally {
    for (const child of children.toReversed()) await endReplica(child);
  }
}

/** B from A, C from A and B, both in empty homes; gone from the fleet before it returns. */
async function startWarm(folder: string, round: number): Promise<{ b: Start; c: Start }> {
  makeHome(folder, "b");
  makeHome(folder, "c");
  const children: ChildProcess[] = [];
  try {
    const b = await startReplica("b", { folder, children, port: 18412 });
    note(`b${round}`, b);
    const c = await startReplica("c", { folder, children, port: 18413 });
    note(`c${round}`, c);
    return { b, c };
  } finally {
    for (const child of children.toReversed()) await endReplica(child);
  }
}

/** Every round begins with what the cold start had left. */
async function startOwnRoot(folder: string): Promise<{ again: Start; limit: Start }[]> {
  const home = path.join(folder, "a");
  const asLeft = path.join(folder, "a-as-left");
  copyCaches(home, asLeft);
  return repeat(async (round) => {
    copyCaches(asLeft, home);
    const again = await startEngine("a", { folder, port: 18414 });
    note(`again${round}`, again);
    const limit = await startEngine("a", { folder, port: 18415 });
    note(`limit${round}`, limit);
    return { again, limit };
  });
}

async function repeat<Result>(once: (round: number) => Promise<Result>): Promise<Result[]> {
  const results: Result[] = [];
  for (let round = 1; round <= roundCount; round += 1) results.push(await once(round));
  return results;
}

function makeHome(folder: string, name: Replica): void {
  const home = path.join(folder, name);
  fs.rmSync(home, { recursive: true, force: true });
  fs.mkdirSync(home, { recursive: true });
}

function copyCaches(from: string, to: string): void {
  fs.mkdirSync(to, { recursive: true });
  for (const name of cacheFolders) {
    fs.rmSync(path.join(to, name), { recursive: true, force: true });
    execFileSync("cp", ["-a", path.join(from, name), to]);
  }
}

/** On the way, so that a run that is cut short has still said what it saw. */
function note(name: string, start: Start): void {
  const { newFiles, record, ...shown } = start;
  console.error(`boot ${name}: ${JSON.stringify(shown)} ${newFiles.length} new files`);
  if (process.env["OUT"])
    fs.writeFileSync(
      path.join(process.env["OUT"], `boot-${name}.json`),
      JSON.stringify({ ...shown, newFiles, record }),
    );
}

function report(emit: Emit, starts: Starts): void {
  const { a, ...warm } = starts;
  const all = { a: [a], ...warm };
  if (new Set(Object.values(all).flatMap((each) => each.map(({ logits }) => logits))).size !== 1)
    throw new Error("The replicas compute different logits");
  for (const [name, each] of Object.entries(all)) emitStarts(emit, name, each);
  for (const name of ["b", "c"] as const) emitCaches(emit, name, starts[name]);
  const compile = (each: readonly Start[]) => median(each.map((start) => start.compileSeconds));
  emitRatio(emit, "boot.other_root.vs_cold", a.compileSeconds, compile(warm.b));
  emitRatio(emit, "boot.other_root.vs_same_root", compile(warm.again), compile(warm.b));
  emitRatio(emit, "boot.third.vs_same_root", compile(warm.limit), compile(warm.c));
  emitRatio(emit, "boot.third.vs_cold", a.compileSeconds, compile(warm.c));
  const healthy = median(warm.c.map((start) => start.wholeSeconds));
  emitRatio(emit, "boot.healthy.third_vs_cold", a.wholeSeconds, healthy);
}

function emitStarts(emit: Emit, name: string, starts: readonly Start[]): void {
  const compile = starts.map((start) => start.compileSeconds);
  const healthy = starts.map((start) => start.wholeSeconds);
  emit({ name: `boot.${name}.compile`, value: median(compile), unit: "s" });
  emit({ name: `boot.${name}.compile.fastest`, value: Math.min(...compile), unit: "s" });
  emit({ name: `boot.${name}.compile.slowest`, value: Math.max(...compile), unit: "s" });
  emit({ name: `boot.${name}.healthy`, value: median(healthy), unit: "s" });
  const cubins = median(starts.map((start) => start.cubinsNew));
  emit({ name: `boot.${name}.cubins_compiled`, value: cubins, unit: "kernels" });
}

function emitCaches(emit: Emit, name: string, starts: readonly Start[]): void {
  const caches = starts.map((start) => start.record?.caches ?? []);
  for (const { family } of caches[0] ?? []) {
    const each = caches.flatMap((some) => some.filter((cache) => cache.family === family));
    const line = (what: string, unit: string, values: readonly number[]) =>
      emit({ name: `boot.${name}.${family}.${what}`, value: median(values), unit });
    line(
      "fetched",
      "files",
      each.map((cache) => cache.fetched),
    );
    line(
      "hit",
      "units",
      each.map((cache) => cache.hits?.hit ?? -1),
    );
    line(
      "compiled_anyway",
      "units",
      each.map((cache) => cache.hits?.compiledAnyway ?? -1),
    );
  }
}

/** How many times faster the second is than the first. */
function emitRatio(emit: Emit, name: string, baseline: number, value: number): void {
  emit({ name, value, unit: "s", baseline, ratio: Number((baseline / value).toFixed(3)) });
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((one, other) => one - other);
  const middle = sorted.length / 2;
  const [low = 0, high = low] = sorted.slice(Math.ceil(middle) - 1, Math.floor(middle) + 1);
  return Number(((low + high) / 2).toFixed(3));
}
