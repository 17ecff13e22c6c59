// SPDX-License-Identifier: Apache-2.0
// Starts of examples/torch-engine for bench/boot.ts: under `relight run` or alone, each in a home of its
// own and in a mount namespace without the homes of the others, and what can be read off each start.

import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { findBoot } from "../src/agent/boot-store.ts";
import type { BootRecord } from "../src/agent/ledger.ts";

const repository = path.resolve(import.meta.dirname, "..");
const relight = path.join(repository, "src/cli/main.ts");
const engine = path.join(repository, "examples/torch-engine/engine.py");
const grpc = "127.0.0.1:18401";
const startMsMax = 900_000;
export const replicas = ["a", "b", "c"] as const;
export type Replica = (typeof replicas)[number];
/** Needs root, or user namespaces; `boot.isolated` says which way it was. */
export const canHide =
  spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).status === 0;
/** Prompt lengths; each compiles its own kernels. */
export const lengths = process.env["BOOT_LENGTHS"] ?? "1,128,1024";

export interface Start {
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

export function startCoordinator(folder: string): ChildProcess {
  return spawn(
    process.execPath,
    [
      relight,
      "coordinator",
      `--listen=${grpc}`,
      "--http-listen=127.0.0.1:18402",
      `--store-dir=${folder}/store`,
    ],
    { stdio: "inherit" },
  );
}

export async function startReplica(
  name: Replica,
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
export async function endReplica(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  const killer = setTimeout(() => child.kill("SIGKILL"), 20_000);
  child.kill("SIGTERM");
  await ended;
  clearTimeout(killer);
}

export async function startEngine(
  name: Replica,
  at: { folder: string; port: number },
): Promise<Start> {
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
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
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
