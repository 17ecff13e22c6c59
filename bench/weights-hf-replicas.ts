// SPDX-License-Identifier: Apache-2.0
// Replicas of examples/hf-engine for bench/weights-hf.ts, each under a `relight run --weights` of its own.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";

const repository = path.resolve(import.meta.dirname, "..");
const relight = path.join(repository, "src/cli/main.ts");
const engine = path.join(repository, "examples/hf-engine/engine.py");
const grpc = "127.0.0.1:18501";
/** `cpu` for a trial of everything but the transfer. */
const device = process.env["HF_DEVICE"] ?? "cuda";

export interface Logits {
  readonly sha256: string;
  readonly token: number;
  readonly mean_abs: number;
}

/** What one rank says of its start; seconds that it did not spend are missing. */
export interface Rank {
  readonly import_s: number;
  readonly context_s: number;
  readonly structure_s?: number;
  readonly weights_s?: number;
  readonly disk_s?: number;
  readonly first_token_s: number;
  readonly from: string;
  readonly publish?: string;
  readonly report?: { readonly bytes?: number; readonly copyMs?: number };
  readonly logits: Logits;
}

export interface Replica {
  readonly ranks: readonly Rank[];
  /** From the start of `relight run`, or from the release of one that was held, to healthy. */
  readonly wholeMs: number;
}

export interface Engine {
  readonly set: string;
  readonly tp: number;
  /** The GPU of each rank. */
  readonly gpus: string;
  readonly fromDisk: boolean;
  readonly port: number;
}

export function startCoordinator(folder: string): ChildProcess {
  return start([
    ...[relight, "coordinator", "--store=memory", `--listen=${grpc}`],
    ...["--http-listen=127.0.0.1:18502", `--state-dir=${folder}/coordinator`],
  ]);
}

/** @throws when it fails or takes longer than `msMax` */
export async function makeCheckpoint(
  set: string,
  { folder, gpu, msMax }: { folder: string; gpu: number; msMax: number },
): Promise<void> {
  const words = [`--set=${set}`, `--make=${folder}/${set}`, `--gpus=${gpu}`, `--device=${device}`];
  const child = spawn("python3", [engine, ...words], { env: environment(), stdio: "inherit" });
  const timer = setTimeout(() => child.kill("SIGKILL"), msMax);
  const [code] = await once(child, "exit");
  clearTimeout(timer);
  if (code !== 0) throw new Error(`Cannot make ${set}: it ended with ${code}`);
}

export class HfReplica {
  readonly engine: Engine;
  readonly #folder: string;
  readonly #hold: string;
  #isHeld = false;
  #child: ChildProcess | null = null;
  #releasedMs = 0;

  constructor(engine: Engine, folder: string) {
    this.engine = engine;
    this.#folder = folder;
    this.#hold = path.join(folder, `go-${engine.port}`);
  }

  /** It imports and opens its GPU, and goes on when it is released. */
  hold(): void {
    this.#isHeld = true;
    this.#start();
  }

  /** Starts it now unless it was held. */
  release(): void {
    this.#releasedMs = performance.now();
    if (this.#isHeld) fs.writeFileSync(this.#hold, "");
    else this.#start();
  }

  /** @throws when it ends, or is not healthy within `msMax` */
  async healthy(msMax: number): Promise<Replica> {
    const url = `http://127.0.0.1:${this.engine.port}/health`;
    while (performance.now() - this.#releasedMs < msMax) {
      const code = this.#child?.exitCode ?? null;
      if (code !== null) throw new Error(`It ended with ${code}`);
      const answer = await fetch(url).catch(() => null);
      if (answer?.ok === true) {
        const { ranks } = (await answer.json()) as { ranks: Rank[] };
        return { ranks, wholeMs: performance.now() - this.#releasedMs };
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`Not healthy after ${msMax} ms`);
  }

  end(): void {
    if (this.#child !== null) endGroup(this.#child);
  }

  #start(): void {
    const { set, tp, port, gpus, fromDisk } = this.engine;
    const folder = this.#folder;
    this.#child = start([
      ...[relight, "run", "--weights", `--coordinator-address=${grpc}`],
      ...[`--node-id=r${port}`, `--model=${set}`, `--tp=${tp}`, "--families=none"],
      ...[`--state-dir=${folder}/state-${port}`, `--trust-dir=${folder}/trust`],
      ...[`--health-url=http://127.0.0.1:${port}/health`, "--", "python3", engine],
      ...[`--set=${set}`, `--checkpoint=${folder}/${set}`, `--tp=${tp}`, `--gpus=${gpus}`],
      `--device=${device}`,
      ...[`--port=${port}`, ...(fromDisk ? ["--from-disk"] : [])],
      ...(this.#isHeld ? [`--hold=${this.#hold}`] : []),
    ]);
  }
}

/** The engine and its ranks end with the agent. */
export function endGroup(child: ChildProcess): void {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  } catch {
    // The whole group has ended by itself.
  }
}

function start(words: readonly string[]): ChildProcess {
  return spawn(process.execPath, words, {
    env: environment(),
    // Its results are the engine's page; what it says goes where our own remarks go.
    stdio: ["ignore", process.stderr, process.stderr],
    detached: true,
  });
}

function environment(): NodeJS.ProcessEnv {
  return { ...process.env, PYTHONPATH: path.join(repository, "python"), PYTHONUNBUFFERED: "1" };
}
