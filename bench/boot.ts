// SPDX-License-Identifier: Apache-2.0
// What a peer's caches are worth to a real torch.compile engine (examples/torch-engine), measured on a
// machine with a GPU: A starts cold, B and C start warm from peers under other cache roots, each
// through `relight run`. The reference is A's own root started again twice: the first such start still
// compiles what the cold one never stored, the second is the limit that C is held against. Nobody sees
// the folders of the others (a mount namespace each): PyTorch's entries can name them, and would be
// read there.

import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { findBoot } from "../src/agent/boot-store.ts";
import type { BootRecord } from "../src/agent/ledger.ts";

const repository = path.resolve(import.meta.dirname, "..");
const relight = path.join(repository, "src/cli/main.ts");
const engine = path.join(repository, "examples/torch-engine/engine.py");
const grpc = "127.0.0.1:18401";
const startMsMax = 900_000;
const replicas = ["a", "b", "c"] as const;
/** Needs root, or user namespaces; `boot.isolated` says which way it was. */
const canHide = spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).status === 0;
/** Shorter in a first look: fewer prompt lengths compile fewer kernels. */
const lengths = process.env["BOOT_LENGTHS"] ?? "1,128,1024";

type Emit = (line: {
  name: string;
  value: number;
  unit: string;
  baseline?: number;
  ratio?: number;
}) => void;

interface Start {
  readonly compileSeconds: number;
  readonly engineSeconds: number;
  /** From `relight run` (or the engine itself) to healthy. */
  readonly wholeSeconds: number;
  readonly logits: string;
  readonly counters: unknown;
  readonly cubinsNew: number;
  readonly newFiles: readonly string[];
  readonly record: BootRecord | null;
}

/** @throws when there is no GPU with PyTorch: then there is nothing to measure. */
export async function run(emit: Emit): Promise<void> {
  execFileSync("python3", ["-c", "import torch; assert torch.cuda.is_available()"], {
    stdio: "inherit",
  });
  // Given: kept, so that what was compiled can be looked at afterwards.
  const kept = process.env["BOOT_FOLDER"];
  const folder = kept ?? fs.mkdtempSync(path.join(os.tmpdir(), "relight-boot-"));
  fs.mkdirSync(folder, { recursive: true });
  for (const name of replicas) fs.mkdirSync(path.join(folder, name), { recursive: true });
  emit({ name: "boot.isolated", value: canHide ? 1 : 0, unit: "bool" });
  const children: ChildProcess[] = [];
  try {
    children.push(
      spawn(
        process.execPath,
        [
          relight,
          "coordinator",
          `--listen=${grpc}`,
          "--http-listen=127.0.0.1:18402",
          `--store-dir=${folder}/store`,
        ],
        { stdio: "inherit" },
      ),
    );
    const a = note("a", await startReplica("a", { folder, children, port: 18411 }));
    const b = note("b", await startReplica("b", { folder, children, port: 18412 }));
    const c = note("c", await startReplica("c", { folder, children, port: 18413 }));
    const again = note("again", await startEngine("a", { folder, port: 18414 }));
    const limit = note("limit", await startEngine("a", { folder, port: 18415 }));
    report(emit, { a, b, c, again, limit });
  } finally {
    for (const child of children.toReversed()) await end(child);
    if (kept === undefined) fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** On the way, so that a run that is cut short has still said what it saw. */
function note(name: string, start: Start): Start {
  const { newFiles, record, ...shown } = start;
  console.error(`boot ${name}: ${JSON.stringify(shown)} ${newFiles.length} new files`);
  if (process.env["OUT"])
    fs.writeFileSync(
      path.join(process.env["OUT"], `boot-${name}.json`),
      JSON.stringify({ ...shown, newFiles, record }),
    );
  return start;
}

function report(
  emit: Emit,
  starts: { a: Start; b: Start; c: Start; again: Start; limit: Start },
): void {
  const { a, b, c, again, limit } = starts;
  if (new Set([a, b, c, again, limit].map((start) => start.logits)).size !== 1)
    throw new Error("The replicas compute different logits");
  for (const [name, start] of Object.entries(starts)) {
    emit({ name: `boot.${name}.compile`, value: start.compileSeconds, unit: "s" });
    emit({ name: `boot.${name}.healthy`, value: start.wholeSeconds, unit: "s" });
    emit({ name: `boot.${name}.cubins_compiled`, value: start.cubinsNew, unit: "kernels" });
  }
  for (const [name, { record }] of [
    ["b", b],
    ["c", c],
  ] as const) {
    for (const cache of record?.caches ?? []) {
      emit({ name: `boot.${name}.${cache.family}.fetched`, value: cache.fetched, unit: "files" });
      emit({
        name: `boot.${name}.${cache.family}.hit`,
        value: cache.hits?.hit ?? -1,
        unit: "units",
      });
      emit({
        name: `boot.${name}.${cache.family}.compiled_anyway`,
        value: cache.hits?.compiledAnyway ?? -1,
        unit: "units",
      });
    }
  }
  emitRatio(emit, "boot.other_root.vs_cold", a.compileSeconds, b.compileSeconds);
  emitRatio(emit, "boot.other_root.vs_same_root", again.compileSeconds, b.compileSeconds);
  emitRatio(emit, "boot.third.vs_same_root", limit.compileSeconds, c.compileSeconds);
  emitRatio(emit, "boot.third.vs_cold", a.compileSeconds, c.compileSeconds);
  emitRatio(emit, "boot.healthy.third_vs_cold", a.wholeSeconds, c.wholeSeconds);
}

/** How many times faster the second is than the first. */
function emitRatio(emit: Emit, name: string, baseline: number, value: number): void {
  emit({ name, value, unit: "s", baseline, ratio: Number((baseline / value).toFixed(3)) });
}

async function startReplica(
  name: string,
  at: { folder: string; children: ChildProcess[]; port: number },
): Promise<Start> {
  const home = path.join(at.folder, name);
  const before = listFiles(home);
  const child = spawnAlone(
    [
      process.execPath,
      relight,
      "run",
      `--coordinator-address=${grpc}`,
      // Replicas of one owner: one key, which signs and is trusted.
      `--trust-dir=${path.join(at.folder, "trust")}`,
      `--node-id=${name}`,
      "--model=llama-like",
      "--families=inductor",
      "--families=triton",
      `--health-url=http://127.0.0.1:${at.port}/health`,
      `--health-budget=${startMsMax / 1_000}s`,
      "--",
      ...engineCommand(at.port),
    ],
    { folder: at.folder, name },
  );
  at.children.push(child);
  const state = path.join(home, "state", "relight");
  await until(() => isPublished(state), child);
  // The delta goes out with the first look after the settle time; the next replica wants all of it.
  await new Promise((resolve) => setTimeout(resolve, 6_000));
  const record = findBoot(state, undefined);
  const start = await readHealth(at.port, { home, before, record });
  console.error(
    execFileSync(process.execPath, [relight, "boot", "show", `--state-dir=${state}`], {
      encoding: "utf8",
    }),
  );
  return start;
}

/** Asked first: `relight run` hands the signal on, and an engine must not outlive the measurement. */
async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return;
  const ended = once(child, "exit");
  const killer = setTimeout(() => child.kill("SIGKILL"), 20_000);
  child.kill("SIGTERM");
  await ended;
  clearTimeout(killer);
}

async function startEngine(name: string, at: { folder: string; port: number }): Promise<Start> {
  const home = path.join(at.folder, name);
  const before = listFiles(home);
  const began = performance.now();
  const child = spawnAlone(engineCommand(at.port), { folder: at.folder, name });
  try {
    await until(
      async () =>
        (await fetch(`http://127.0.0.1:${at.port}/health`).catch(() => null))?.ok === true,
      child,
    );
    const wholeMs = performance.now() - began;
    return {
      ...(await readHealth(at.port, { home, before, record: null })),
      wholeSeconds: seconds(wholeMs),
    };
  } finally {
    child.kill("SIGKILL");
  }
}

/** With the folders of the other replicas hidden from it, where this machine lets us. */
function spawnAlone(
  command: readonly string[],
  { folder, name }: { folder: string; name: string },
): ChildProcess {
  const hidden = replicas
    .filter((other) => other !== name)
    .map((other) => path.join(folder, other));
  const script = `for f in ${hidden.map((other) => `'${other}'`).join(" ")}; do mount -t tmpfs none "$f" || exit 1; done; exec "$@"`;
  const alone = canHide ? ["unshare", "-m", "sh", "-c", script, "sh", ...command] : command;
  const [program = "", ...args] = alone;
  return spawn(program, args, {
    env: engineEnvironment(path.join(folder, name)),
    stdio: "inherit",
  });
}

function engineCommand(port: number): string[] {
  return ["python3", engine, `--port=${port}`, "--layers=2", `--lengths=${lengths}`];
}

/** Another root for each replica, as on another node. */
function engineEnvironment(home: string): NodeJS.ProcessEnv {
  return {
    ...process.env,
    XDG_STATE_HOME: path.join(home, "state"),
    TORCHINDUCTOR_CACHE_DIR: path.join(home, "inductor"),
    TRITON_CACHE_DIR: path.join(home, "triton"),
  };
}

async function readHealth(
  port: number,
  context: { home: string; before: ReadonlySet<string>; record: BootRecord | null },
): Promise<Start> {
  const response = await fetch(`http://127.0.0.1:${port}/health`);
  const health = (await response.json()) as {
    compile_s: number;
    total_s: number;
    logits: string;
    counters: unknown;
  };
  const installed = installedFiles(context.home);
  const fresh = [...listFiles(context.home)].filter(
    (file) => !context.before.has(file) && !installed.has(file),
  );
  return {
    compileSeconds: health.compile_s,
    engineSeconds: health.total_s,
    wholeSeconds: seconds(context.record?.healthyMs ?? health.total_s * 1_000),
    logits: health.logits,
    counters: health.counters,
    cubinsNew: fresh.filter((file) => file.endsWith(".cubin")).length,
    newFiles: fresh,
    record: context.record,
  };
}

function installedFiles(home: string): Set<string> {
  const files = new Set<string>();
  for (const cache of ["inductor", "triton"]) {
    const receipts = path.join(home, cache, ".relight", "receipts");
    for (const name of fs.existsSync(receipts) ? fs.readdirSync(receipts) : []) {
      const receipt = JSON.parse(fs.readFileSync(path.join(receipts, name), "utf8")) as {
        files: { path: string }[];
      };
      for (const file of receipt.files) files.add(`${cache}/${file.path}`);
    }
  }
  return files;
}

function listFiles(home: string): Set<string> {
  if (!fs.existsSync(home)) return new Set();
  const items = fs.readdirSync(home, { recursive: true, withFileTypes: true });
  return new Set(
    items
      .filter((item) => item.isFile())
      .map((item) => path.relative(home, path.join(item.parentPath, item.name))),
  );
}

function isPublished(state: string): boolean {
  try {
    return findBoot(state, undefined).caches.some((cache) => cache.published !== null);
  } catch {
    // Not written yet.
    return false;
  }
}

async function until(isDone: () => boolean | Promise<boolean>, child: ChildProcess): Promise<void> {
  const deadline = performance.now() + startMsMax;
  while (!(await isDone())) {
    if (child.exitCode !== null) throw new Error(`The replica ended with code ${child.exitCode}`);
    if (performance.now() > deadline) throw new Error(`Not ready after ${startMsMax} ms`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function seconds(ms: number): number {
  return Number((ms / 1_000).toFixed(2));
}
