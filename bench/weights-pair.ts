// SPDX-License-Identifier: Apache-2.0
// The processes of the weights benchmarks: an agent and an engine for each GPU, who obey a word a line.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type AgentArguments, openDriver } from "../test/contracts/weights-agent.ts";
import type { Dealing, SetName } from "./weights-sets.ts";

/** What an engine hears of its load; times in milliseconds. */
export interface Report {
  readonly copyMs: number;
  /** From the first lease to the last digest, waiting for a loading source included. */
  readonly readMs: number;
  readonly totalMs: number;
  readonly bytes: number;
  readonly copyCount: number;
  readonly costBytes: number | null;
  readonly sources: readonly string[];
  readonly transports: readonly string[];
}

export interface PairOptions {
  readonly set: SetName;
  readonly from: Dealing;
  readonly to: Dealing;
  readonly agent?: AgentOptions;
}

type AgentOptions = Partial<AgentArguments> & { readonly env?: Readonly<Record<string, string>> };

export interface Pair {
  /** Where targets find the source's agent. */
  readonly source: string;
  readonly target: Engine;
}

/** `cuda`, unless a trial without GPUs is asked for. */
export const backend = process.env["RELIGHT_BENCH_BACKEND"] === "fake" ? "fake" : "cuda";

/** Engines on GPU 0 and GPU 1, each with an agent; the source has published. */
export async function onPair<Result>(
  { set, from, to, agent = {} }: PairOptions,
  act: (pair: Pair) => Promise<Result>,
): Promise<Result> {
  return await inFleet({ agent, count: 2 }, async (fleet) => {
    const source = await fleet.engine(0, set, from);
    const target = await fleet.engine(1, set, to);
    await source.ask("publish");
    return await act({ source: fleet.address(0), target });
  });
}

export interface Fleet {
  readonly directory: string;
  address(index: number): string;
  socket(index: number): string;
  engine(index: number, set: SetName, dealing: Dealing): Promise<Engine>;
}

/** So many agents, one for each GPU. */
export async function inFleet<Result>(
  { agent, count }: { readonly agent: AgentOptions; readonly count: number },
  act: (fleet: Fleet) => Promise<Result>,
): Promise<Result> {
  const directory = mkdtempSync(join(tmpdir(), "relight-bench-"));
  const started: LineProcess[] = [];
  const start = <Part extends LineProcess>(part: Part): Part => {
    started.push(part);
    return part;
  };
  const { env = {}, ...over } = agent;
  try {
    const agents = Array.from({ length: count }, (_, index) => {
      const given = { backend, directory, socket: join(directory, `${index}`), ...over };
      const script = join(import.meta.dirname, "../test/contracts/weights-agent.ts");
      return start(new LineProcess([process.execPath, script, JSON.stringify(given)], env));
    });
    const addresses = await Promise.all(
      agents.map(async (one) => (await one.line()).split(" ")[1]),
    );
    const socket = (index: number) => join(directory, `${index}`);
    return await act({
      directory,
      socket,
      address: (index) => addresses[index] ?? "",
      engine: async (index, set, dealing) => {
        const script = join(import.meta.dirname, "weights-engine.ts");
        // On a machine with one GPU both ends are on it: for the ways that go through the host.
        const ordinal = index % (await gpuCount());
        const words = [set, `${ordinal}`, socket(index), dealing, directory];
        const engine = start(new Engine([process.execPath, script, ...words], {}));
        await engine.answer();
        return engine;
      },
    });
  } finally {
    for (const one of started.toReversed()) await one.end();
    rmSync(directory, { recursive: true, force: true });
  }
}

export async function gpuCount(): Promise<number> {
  await using driver = openDriver({ backend, directory: tmpdir() });
  return await driver.devices().then(
    (devices) => devices.length,
    () => 0,
  );
}

/** A process that is spoken to in lines, and ends with its input. */
export class LineProcess {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(words: readonly string[], env: Readonly<Record<string, string>>) {
    const [program = "", ...rest] = words;
    const child = spawn(program, rest, {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, ...env },
    });
    this.#child = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  say(line: string): void {
    this.#child.stdin?.write(`${line}\n`);
  }

  async line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error("the process has ended");
    return value;
  }

  async end(): Promise<void> {
    this.#child.stdin?.end();
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      await once(this.#child, "exit");
    }
  }
}

export class Engine extends LineProcess {
  async ask(line: string): Promise<Readonly<Record<string, unknown>>> {
    this.say(line);
    return await this.answer();
  }

  /** Takes the weights from a source, into memory that held something else. */
  async load(source: string): Promise<Report> {
    return (await this.ask(`load ${source}`)) as unknown as Report;
  }

  async answer(): Promise<Readonly<Record<string, unknown>>> {
    const answer = JSON.parse(await this.line()) as Readonly<Record<string, unknown>>;
    if (answer["code"] !== undefined) throw new Error(`${answer["code"]}: ${answer["message"]}`);
    return answer;
  }
}
