// SPDX-License-Identifier: Apache-2.0
// Weights from a live replica, end to end: engines and agents are processes, memory is shared by handle,
// and every claim is about the bytes in the target. The fake passes it in every run, GPUs where they are.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, test } from "node:test";
import type { AgentArguments } from "./weights-agent.ts";
import type { TensorSpec } from "./weights-engine.ts";
import type { EngineArguments, EngineCommand } from "./weights-engine-process.ts";

export interface WeightsContractOptions {
  readonly backend: "cuda" | "fake";
  readonly skip: string | false;
  /** 1: both engines on one GPU. */
  readonly deviceCount: number;
}

interface Loaded {
  readonly content: string;
  readonly generation: number;
  readonly key: string;
  readonly bytes: number;
  readonly copyCount: number;
  readonly sources: readonly string[];
  readonly failures: readonly { readonly source: string; readonly code: string }[];
}

interface Failed {
  readonly code: string;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** 1 MiB, so that a slowed copy can be met in its middle. */
const large: readonly TensorSpec[] = Array.from({ length: 16 }, (_, index) => ({
  name: `layers.${index}`,
  dtype: "uint8",
  shape: [2 ** 16],
  stride: [1],
}));

export function weightsContract({ backend, skip, deviceCount }: WeightsContractOptions): void {
  describe(`weights contract: ${backend} on ${deviceCount}`, { skip, timeout: 180_000 }, () => {
    const world = (run: (world: World) => Promise<void>) => inWorld({ backend, deviceCount }, run);

    for (const sharing of ["ipc", "descriptor"] as const) {
      for (const isReversed of [false, true]) {
        test(`a target gets every tensor by ${sharing}, laid out alike: ${!isReversed}`, async () => {
          await world(async ({ agent, engine }) => {
            const [from, to] = [await agent("a"), await agent("b")];
            const source = await engine(from, { sharing });
            const target = await engine(to, { sharing, isReversed, isTarget: true });
            await source.ask({ do: "fill", salt: "one" });
            await source.ask({ do: "publish" });
            await target.ask({ do: "poison" });
            const loaded = await target.ask<Loaded>(loadFrom(from));
            assert.deepEqual(loaded.sources, [from.socket]);
            assert.deepEqual(loaded.failures, []);
            assert.deepEqual(await target.ask({ do: "differing", salt: "one" }), []);
            assert.equal(await target.ask({ do: "padding" }), 0xee);
          });
        });
      }
    }

    test("a verified target is a source at once: a chain of three, and two targets at a time", async () => {
      await world(async ({ agent, engine }) => {
        const [first, second] = [await agent("a"), await agent("b")];
        const source = await engine(first, {});
        await source.ask({ do: "fill", salt: "chain" });
        await source.ask({ do: "publish" });
        const next = await engine(second, { isTarget: true, isReversed: true });
        await next.ask(loadFrom(first));
        await source.kill();
        const [third, fourth] = [await agent("c"), await agent("d")];
        const last = await Promise.all([
          engine(third, { isTarget: true }),
          engine(fourth, { isTarget: true, isReversed: true }),
        ]);
        await Promise.all(last.map((one) => one.ask(loadFrom(second))));
        for (const one of last) {
          assert.deepEqual(await one.ask({ do: "differing", salt: "chain" }), []);
        }
      });
    });

    test("same shapes with other values are refused when a content is demanded", async () => {
      await world(async ({ agent, engine }) => {
        const [right, wrong, to] = [await agent("a"), await agent("b"), await agent("c")];
        const source = await engine(right, {});
        await source.ask({ do: "fill", salt: "right" });
        const { content } = await source.ask<Loaded>({ do: "publish" });
        const other = await engine(wrong, {});
        await other.ask({ do: "fill", salt: "wrong" });
        await other.ask({ do: "publish" });
        const target = await engine(to, { isTarget: true });
        const only = await target.fail({ do: "load", sources: [wrong.socket], content });
        assert.equal(only.code, "sources_exhausted");
        assert.equal(only.details["mutated"], false);
        const sources = [wrong.socket, right.socket];
        const loaded = await target.ask<Loaded>({ do: "load", sources, content });
        assert.deepEqual(
          loaded.failures.map(({ code }) => code),
          ["digest_mismatch"],
        );
        assert.deepEqual(await target.ask({ do: "differing", salt: "right" }), []);
      });
    });

    test("tensors that fail their digest come from another source, the others are kept", async () => {
      await world(async ({ agent, engine }) => {
        const [bad, good, to] = [await agent("a"), await agent("b"), await agent("c")];
        const [one, other] = [await engine(bad, {}), await engine(good, {})];
        for (const source of [one, other]) {
          await source.ask({ do: "fill", salt: "x" });
          await source.ask({ do: "publish" });
        }
        // Behind its agent's back: the manifest still promises the old values.
        await one.ask({ do: "write", tensor: "gate_up", salt: "flipped" });
        const target = await engine(to, { isTarget: true });
        const loaded = await target.ask<Loaded>({
          do: "load",
          sources: [bad.socket, good.socket],
          content: null,
        });
        assert.deepEqual(
          loaded.failures.map(({ code }) => code),
          ["digest_mismatch"],
        );
        assert.deepEqual(loaded.sources, [bad.socket, good.socket]);
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
      });
    });

    test("with nobody left the load fails, says that memory was written, and names the tensor", async () => {
      await world(async ({ agent, engine }) => {
        const [bad, to] = [await agent("a"), await agent("b")];
        const source = await engine(bad, {});
        await source.ask({ do: "fill", salt: "x" });
        await source.ask({ do: "publish" });
        await source.ask({ do: "write", tensor: "down", salt: "flipped" });
        const target = await engine(to, { isTarget: true });
        const failed = await target.fail(loadFrom(bad));
        assert.equal(failed.code, "sources_exhausted");
        assert.equal(failed.details["mutated"], true);
        assert.match(failed.message, /13 of 14 tensors verified.*"down"/);
      });
    });

    test("a draft and its target on one agent, and two pipeline stages, do not meet", async () => {
      await world(async ({ agent, engine }) => {
        const [from, to] = [await agent("a"), await agent("b")];
        const coordinates = [
          { role: "target" },
          { role: "draft" },
          { pipeline: { rank: 1, size: 2 } },
        ] as const;
        for (const [index, coordinate] of coordinates.entries()) {
          const source = await engine(from, { coordinate });
          await source.ask({ do: "fill", salt: `part ${index}` });
          await source.ask({ do: "publish" });
        }
        for (const [index, coordinate] of coordinates.entries()) {
          const target = await engine(to, { coordinate, isTarget: true });
          await target.ask(loadFrom(from));
          assert.deepEqual(await target.ask({ do: "differing", salt: `part ${index}` }), []);
        }
        const again = await engine(from, { coordinate: { role: "draft" } });
        assert.equal((await again.fail({ do: "publish" })).code, "conflict");
        const stranger = await engine(to, { coordinate: { tensor: { rank: 1, size: 2 } } });
        const failed = await stranger.fail(loadFrom(from));
        assert.equal(failed.code, "sources_exhausted");
        assert.match(failed.message, /nothing was published for it/);
      });
    });

    test("an engine that updates its weights publishes them anew, as another generation", async () => {
      await world(async ({ agent, engine }) => {
        const [from, to] = [await agent("a"), await agent("b")];
        const source = await engine(from, {});
        await source.ask({ do: "fill", salt: "old" });
        const old = await source.ask<Loaded>({ do: "publish" });
        const renewed = await source.ask<Loaded>({ do: "update", key: old.key, salt: "new" });
        assert.equal(renewed.generation, old.generation + 1);
        assert.notEqual(renewed.content, old.content);
        const target = await engine(to, { isTarget: true });
        assert.equal((await target.ask<Loaded>(loadFrom(from))).content, renewed.content);
        assert.deepEqual(await target.ask({ do: "differing", salt: "new" }), []);
      });
    });

    test("a source whose engine was killed before the read is replaced by another", async () => {
      await world(async ({ agent, engine }) => {
        const [dead, live, to] = [await agent("a"), await agent("b"), await agent("c")];
        const [one, other] = [await engine(dead, {}), await engine(live, {})];
        for (const source of [one, other]) {
          await source.ask({ do: "fill", salt: "x" });
          await source.ask({ do: "publish" });
        }
        await one.kill();
        const target = await engine(to, { isTarget: true });
        const sources = [dead.socket, live.socket];
        const loaded = await target.ask<Loaded>({ do: "load", sources, content: null });
        assert.deepEqual(loaded.sources, [live.socket]);
        assert.ok(["no_source", "device_handle_invalid"].includes(loaded.failures[0]?.code ?? ""));
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
      });
    });

    test("an agent that was killed, and one that accepts and never answers, cost a bounded time", async () => {
      await world(async ({ agent, engine, directory }) => {
        const [dead, live, to] = [await agent("a"), await agent("b"), await agent("c")];
        const source = await engine(live, {});
        await source.ask({ do: "fill", salt: "x" });
        await source.ask({ do: "publish" });
        await dead.kill();
        const silent = createServer().listen(join(directory, "silent"));
        const target = await engine(to, { isTarget: true });
        const sources = [dead.socket, join(directory, "silent"), live.socket];
        const loaded = await target.ask<Loaded>({ do: "load", sources, content: null });
        const codes = loaded.failures.map(({ code }) => code);
        assert.deepEqual(codes, ["source_unreachable", "source_stalled"]);
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
        silent.close();
        // Whoever was only let in ends with the server.
        createConnection(join(directory, "silent"))
          .on("error", () => undefined)
          .destroy();
      });
    });

    test("a killed target gives its lease back, and the source goes on serving", async () => {
      await world(async ({ agent, engine }) => {
        const from = await agent("a", { readersMax: 1 });
        const [first, second] = [await agent("b", slow(backend)), await agent("c")];
        const source = await engine(from, { tensors: large });
        await source.ask({ do: "fill", salt: "x" });
        await source.ask({ do: "publish" });
        const doomed = await engine(first, { tensors: large, isTarget: true });
        const never = doomed.ask(loadFrom(from)).catch(() => "killed");
        if (backend === "fake") {
          const blocked = await engine(second, { tensors: large, isTarget: true });
          const busy = await untilFailed(blocked, loadFrom(from));
          assert.match(busy.message, /as many readers as it admits/);
        }
        await first.kill();
        await doomed.kill();
        await never;
        const target = await engine(second, { tensors: large, isTarget: true });
        await untilLoaded(target, loadFrom(from));
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
        assert.deepEqual(await source.ask({ do: "differing", salt: "x" }), []);
      });
    });

    test("a source killed in the middle of the read: what verified stays, the rest comes from another", async () => {
      await world(async ({ agent, engine }) => {
        const [dying, live] = [await agent("a"), await agent("b")];
        const to = await agent("c", slow(backend));
        const [one, other] = [
          await engine(dying, { tensors: large }),
          await engine(live, { tensors: large }),
        ];
        for (const source of [one, other]) {
          await source.ask({ do: "fill", salt: "x" });
          await source.ask({ do: "publish" });
        }
        const target = await engine(to, { tensors: large, isTarget: true });
        const sources = [dying.socket, live.socket];
        const loading = target.ask<Loaded>({ do: "load", sources, content: null });
        await pause(200);
        await one.kill();
        await dying.kill();
        await loading;
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
      });
    });

    test("a source that changes in the middle of the read is read again, whole", async () => {
      await world(async ({ agent, engine }) => {
        const from = await agent("a");
        const to = await agent("b", slow(backend));
        const source = await engine(from, { tensors: large });
        await source.ask({ do: "fill", salt: "old" });
        const { key } = await source.ask<Loaded>({ do: "publish" });
        const target = await engine(to, { tensors: large, isTarget: true });
        const loading = target.ask<Loaded>(loadFrom(from));
        await pause(200);
        const renewed = await source.ask<Loaded>({ do: "update", key, salt: "new" });
        const loaded = await loading;
        const salt = loaded.content === renewed.content ? "new" : "old";
        // Only the fake is slow enough for the change to come surely in the middle.
        if (backend === "fake") assert.equal(salt, "new");
        assert.deepEqual(await target.ask({ do: "differing", salt }), []);
      });
    });

    test("a load without a source, and one whose only source is not there, say so", async () => {
      await world(async ({ agent, engine }) => {
        const target = await engine(await agent("a"), {});
        const none = await target.fail({ do: "load", sources: [], content: null });
        assert.equal(none.code, "no_source");
        const failed = await target.fail({ do: "load", sources: ["/nowhere"], content: null });
        assert.equal(failed.code, "sources_exhausted");
        assert.equal(failed.details["mutated"], false);
      });
    });
  });
}

function loadFrom(agent: Process): EngineCommand {
  return { do: "load", sources: [agent.socket], content: null };
}

/** 1 MiB at 1 MiB/s: a second, in which to act. */
function slow(backend: "cuda" | "fake"): Partial<AgentArguments> {
  if (backend === "cuda") return {};
  return { bytesPerSecond: 2 ** 20, limits: { batchBytes: 2 ** 16 } };
}

interface World {
  readonly directory: string;
  agent(name: string, over?: Partial<AgentArguments>): Promise<Process>;
  engine(agent: Process, over: EngineOver): Promise<Process>;
}

type EngineOver = Partial<EngineArguments> & { readonly isTarget?: boolean };

async function inWorld(
  { backend, deviceCount }: { backend: "cuda" | "fake"; deviceCount: number },
  run: (world: World) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "relight-w-"));
  const started: Process[] = [];
  const start = async (script: string, given: object, socket: string) => {
    const process = await Process.start(script, given, socket);
    started.push(process);
    return process;
  };
  try {
    await run({
      directory,
      agent: (name, over = {}) => {
        const socket = join(directory, name);
        return start("weights-agent.ts", { backend, socket, directory, ...over }, socket);
      },
      engine: (agent, { isTarget, ...over }) => {
        const ordinal = isTarget === true ? deviceCount - 1 : 0;
        const fixed = { backend, directory, agent: agent.socket, ordinal, tensors: null };
        const shape = { sharing: "ipc", isReversed: false, allocationCount: 3, ...over };
        return start("weights-engine-process.ts", { ...fixed, ...shape }, "");
      },
    });
  } finally {
    await Promise.all(started.map((one) => one.kill()));
    rmSync(directory, { recursive: true, force: true });
  }
}

class Process {
  readonly socket: string;
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(child: ChildProcess, lines: AsyncIterator<string>, socket: string) {
    this.#child = child;
    this.#lines = lines;
    this.socket = socket;
  }

  static async start(script: string, given: object, socket: string): Promise<Process> {
    const child = spawn(
      process.execPath,
      [join(import.meta.dirname, script), JSON.stringify(given)],
      { stdio: ["pipe", "pipe", "inherit"] },
    );
    child.stdin.on("error", () => undefined); // A killed child takes no more commands.
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const first = await lines.next();
    assert.equal(first.value, "ready", `${script} did not start`);
    return new Process(child, lines, socket);
  }

  async ask<Value>(command: EngineCommand): Promise<Value> {
    const answer = await this.#send(command);
    assert.ok("value" in answer, `${command.do}: ${JSON.stringify(answer)}`);
    return answer.value as Value;
  }

  async fail(command: EngineCommand): Promise<Failed> {
    const answer = await this.#send(command);
    assert.ok("error" in answer, `${command.do} did not fail`);
    return answer.error;
  }

  async try(command: EngineCommand): Promise<{ value: unknown } | { error: Failed }> {
    return await this.#send(command);
  }

  async kill(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, "exit");
    this.#child.kill("SIGKILL");
    await ended;
  }

  async #send(command: EngineCommand): Promise<{ value: unknown } | { error: Failed }> {
    this.#child.stdin?.write(`${JSON.stringify(command)}\n`);
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error("the process has ended");
    return JSON.parse(value) as { value: unknown } | { error: Failed };
  }
}

/** The lease is taken a moment after the command; until then a second reader is let in. */
async function untilFailed(engine: Process, command: EngineCommand): Promise<Failed> {
  for (let round = 0; round < 50; round += 1) {
    const answer = await engine.try(command);
    if ("error" in answer) return answer.error;
  }
  throw new Error("the load never failed");
}

/** A killed process is noticed by its connection's end, a moment later. */
async function untilLoaded(engine: Process, command: EngineCommand): Promise<void> {
  for (let round = 0; round < 50; round += 1) {
    if ("value" in (await engine.try(command))) return;
    await pause(20);
  }
  throw new Error("the load never succeeded");
}

async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}
