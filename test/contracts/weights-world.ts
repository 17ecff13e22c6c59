// SPDX-License-Identifier: Apache-2.0
// A machine in a test: agents that do nothing but weights and engines that obey, as processes that may be
// killed or, where nothing is about processes, in the test's own; the sockets between them are real.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { TransportName } from "../../src/weights/carrier.ts";
import { type AgentArguments, TestAgent } from "./weights-agent.ts";
import {
  type EngineAnswer,
  type EngineArguments,
  type EngineCommand,
  type EngineFailure,
  ObedientEngine,
} from "./weights-engine-process.ts";

export interface World {
  readonly directory: string;
  agent(name: string, over?: Partial<AgentArguments> & WhereOver): Part;
  engine(agent: Part, over: EngineOver): Part;
}

/** The fake runs in the test's process unless a test kills it or is about processes. */
interface WhereOver {
  readonly isProcess?: boolean;
}

type EngineOver = Partial<EngineArguments> & WhereOver & { readonly isTarget?: boolean };

export interface WorldOptions {
  readonly backend: "cuda" | "fake";
  readonly deviceCount: number;
  /** By shared memory when not given. */
  readonly transport?: TransportName;
}

export async function inWorld(
  { backend, deviceCount, transport }: WorldOptions,
  run: (world: World) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "relight-w-"));
  const started: Part[] = [];
  const start = (part: Part) => {
    started.push(part);
    return part;
  };
  try {
    await run({
      directory,
      agent: (name, { isProcess, ...over } = {}) => {
        const socket = join(directory, name);
        const given = {
          backend,
          socket,
          directory,
          ...(transport === undefined ? {} : { transport }),
          ...libraries,
          ...over,
        };
        if (backend === "fake" && isProcess !== true) {
          return start(new LocalPart(socket, () => openAgent(given)));
        }
        const after = Promise.resolve();
        return start(new ProcessPart("weights-agent.ts", { given, socket, after }));
      },
      engine: (agent, { isTarget, isProcess, ...over }) => {
        const ordinal = isTarget === true ? deviceCount - 1 : 0;
        const given: EngineArguments = {
          backend,
          directory,
          agent: agent.socket,
          ordinal,
          tensors: null,
          sharing: "ipc",
          isReversed: false,
          allocationCount: 3,
          ...over,
        };
        if (backend === "fake" && isProcess !== true) {
          return start(new LocalPart("", () => agent.ready.then(() => ObedientEngine.open(given))));
        }
        const options = { given, socket: "", after: agent.ready };
        return start(new ProcessPart("weights-engine-process.ts", options));
      },
    });
  } finally {
    await Promise.all(started.map((one) => one.kill()));
    rmSync(directory, { recursive: true, force: true });
  }
}

const library = process.env["RELIGHT_WEIGHTS_NCCL_LIBRARY"];
const libraries = library === undefined ? {} : { ncclLibrary: library };

async function openAgent(given: AgentArguments): Promise<TestAgent> {
  const agent = new TestAgent(given);
  await agent.ready;
  return agent;
}

/** An agent or an engine, wherever it runs. */
export abstract class Part {
  readonly socket: string;
  /** Rejects when it ends before it is ready. */
  abstract readonly ready: Promise<void>;
  /** Where an agent is found by others, once it is ready. */
  abstract readonly address: string;

  constructor(socket: string) {
    this.socket = socket;
  }

  async ask<Value>(command: EngineCommand): Promise<Value> {
    const answer = await this.try(command);
    assert.ok("value" in answer, `${command.do}: ${JSON.stringify(answer)}`);
    return answer.value as Value;
  }

  async fail(command: EngineCommand): Promise<EngineFailure> {
    const answer = await this.try(command);
    assert.ok("error" in answer, `${command.do} did not fail`);
    return answer.error;
  }

  abstract try(command: EngineCommand): Promise<EngineAnswer>;
  /** How many read what this agent offers; `null` where nobody can see it. */
  abstract readers(): Promise<number | null>;
  abstract kill(): Promise<void>;
}

/** In a process of its own, which is what a kill needs, and two contexts on one GPU. */
class ProcessPart extends Part {
  override readonly ready: Promise<void>;
  readonly #child: Promise<ChildProcess>;
  override address = "";
  #lines: AsyncIterator<string> | null = null;

  /** @param after what must be ready before; processes start beside one another otherwise */
  constructor(script: string, options: { given: object; socket: string; after: Promise<void> }) {
    super(options.socket);
    const words = [join(import.meta.dirname, script), JSON.stringify(options.given)];
    this.#child = options.after.then(() => {
      const child = spawn(process.execPath, words, { stdio: ["pipe", "pipe", "inherit"] });
      child.stdin.on("error", () => undefined); // A killed child takes no more commands.
      this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
      return child;
    });
    this.ready = this.#child.then(async () => {
      const first = await this.#lines?.next();
      const [word, address = ""] = String(first?.value).split(" ");
      assert.equal(word, "ready", `${script} did not start`);
      this.address = address;
    });
    this.ready.catch(() => undefined); // Told to whoever asks it something.
  }

  override async try(command: EngineCommand): Promise<EngineAnswer> {
    await this.ready;
    const child = await this.#child;
    child.stdin?.write(`${JSON.stringify(command)}\n`);
    const { value, done } = (await this.#lines?.next()) ?? { value: "", done: true };
    if (done === true) throw new Error("the process has ended");
    return JSON.parse(value) as EngineAnswer;
  }

  override async readers(): Promise<null> {
    return null;
  }

  override async kill(): Promise<void> {
    const child = await this.#child.catch(() => null);
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }
}

/** In the test's process, which is ten times as quick to start; the sockets between are real. */
class LocalPart extends Part {
  override readonly ready: Promise<void>;
  readonly #part: Promise<ObedientEngine | TestAgent>;
  override address = "";

  constructor(socket: string, open: () => Promise<ObedientEngine | TestAgent>) {
    super(socket);
    this.#part = open();
    this.ready = this.#part.then((part) => {
      if (part instanceof TestAgent) this.address = part.address;
    });
    this.ready.catch(() => undefined);
  }

  override async try(command: EngineCommand): Promise<EngineAnswer> {
    const part = await this.#part;
    assert.ok(part instanceof ObedientEngine, "an agent takes no commands");
    return await part.answer(command);
  }

  override async readers(): Promise<number | null> {
    const part = await this.#part;
    return part instanceof TestAgent ? (part.host.offers()[0]?.readers ?? null) : null;
  }

  override async kill(): Promise<void> {
    const part = await this.#part.catch(() => null);
    await part?.[Symbol.asyncDispose]();
  }
}

export async function until(isSo: () => Promise<boolean>): Promise<void> {
  for (let round = 0; round < 1_000; round += 1) {
    if (await isSo()) return;
    await pause(10);
  }
  throw new Error("it never came to be");
}

/** A killed process is noticed by its connection's end, a moment later. */
export async function untilLoaded(engine: Part, command: EngineCommand): Promise<void> {
  let last: EngineAnswer = { value: null };
  for (let round = 0; round < 100; round += 1) {
    last = await engine.try(command);
    if ("value" in last) return;
    await pause(20);
  }
  assert.fail(`the load never succeeded: ${JSON.stringify(last)}`);
}

export async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}
