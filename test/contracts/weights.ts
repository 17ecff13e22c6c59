// SPDX-License-Identifier: Apache-2.0
// Weights from a live replica, end to end: engines and agents are processes, memory is shared by handle,
// and every claim is about the bytes in the target. The fake passes it in every run, GPUs where they are.

import assert from "node:assert/strict";
import { createConnection, createServer } from "node:net";
import { join } from "node:path";
import { describe, test as register } from "node:test";
import type { TransportName } from "../../src/weights/carrier.ts";
import type { AgentArguments } from "./weights-agent.ts";
import type { TensorSpec } from "./weights-engine.ts";
import type { EngineCommand } from "./weights-engine-process.ts";
import { inWorld, type Part, pause, until, untilLoaded, type World } from "./weights-world.ts";

export interface WeightsContractOptions {
  readonly backend: "cuda" | "fake";
  readonly skip: string | false;
  /** 1: both engines on one GPU. */
  readonly deviceCount: number;
  readonly transport: TransportName;
}

interface Loaded {
  readonly content: string;
  readonly generation: number;
  readonly key: string;
  readonly bytes: number;
  readonly copyCount: number;
  readonly sources: readonly string[];
  readonly transports: readonly string[];
  readonly failures: readonly { readonly source: string; readonly code: string }[];
}

/** 1 MiB, so that a slowed copy can be met in its middle. */
const large: readonly TensorSpec[] = Array.from({ length: 16 }, (_, index) => ({
  name: `layers.${index}`,
  dtype: "uint8",
  shape: [2 ** 16],
  stride: [1],
}));

export function weightsContract(options: WeightsContractOptions): void {
  const { backend, skip, deviceCount, transport } = options;
  const name = `weights contract: ${transport}, ${backend} on ${deviceCount}`;
  describe(name, { timeout: 180_000 }, () => {
    // Each claim is skipped, not the suite, so that skips are counted one by one.
    const test = (claim: string, run: () => Promise<void> | void) => register(claim, { skip }, run);
    /** What has nothing to do with how the bytes come is claimed once. */
    const testOnce = (claim: string, run: () => Promise<void> | void) => {
      if (transport === "cuda-ipc") test(claim, run);
    };

    const world = (run: (world: World) => Promise<void>) => inWorld(options, run);

    for (const sharing of ["ipc", "descriptor"] as const) {
      for (const isReversed of [false, true]) {
        if (transport !== "cuda-ipc" && (sharing === "descriptor") !== isReversed) continue;
        test(`a target gets every tensor by ${sharing}, laid out alike: ${!isReversed}`, async () => {
          await world(async ({ agent, engine }) => {
            const [from, to] = [agent("a"), agent("b")];
            const isProcess = !isReversed;
            const source = engine(from, { sharing, isProcess });
            const target = engine(to, { sharing, isReversed, isTarget: true, isProcess });
            await source.ask({ do: "fill", salt: "one" });
            await source.ask({ do: "publish" });
            await target.ask({ do: "poison" });
            const loaded = await target.ask<Loaded>(loadFrom(from));
            assert.deepEqual(loaded.sources, [from.address]);
            assert.deepEqual(loaded.transports, [transport]);
            assert.deepEqual(loaded.failures, []);
            assert.deepEqual(await target.ask({ do: "differing", salt: "one" }), []);
            assert.equal(await target.ask({ do: "padding" }), 0xee);
          });
        });
      }
    }

    testOnce(
      "a verified target is a source at once: a chain of three, and two targets at a time",
      async () => {
        await world(async ({ agent, engine }) => {
          const [first, second] = [agent("a"), agent("b")];
          const source = engine(first, { isProcess: true });
          await source.ask({ do: "fill", salt: "chain" });
          await source.ask({ do: "publish" });
          const next = engine(second, { isTarget: true, isReversed: true });
          await next.ask(loadFrom(first));
          await source.kill();
          const [third, fourth] = [agent("c"), agent("d")];
          const last = [
            engine(third, { isTarget: true }),
            engine(fourth, { isTarget: true, isReversed: true }),
          ];
          await Promise.all(last.map((one) => one.ask(loadFrom(second))));
          for (const one of last) {
            assert.deepEqual(await one.ask({ do: "differing", salt: "chain" }), []);
          }
        });
      },
    );

    test("a source with too many readers sends the next to its readers, who give what they have verified", async () => {
      await world(async ({ agent, engine }) => {
        const from = agent("a", { readersMax: 1 });
        const chain = ["b", "c", "d"].map((name) =>
          // NCCL has no way between two targets on one GPU: there they wait for their turn.
          agent(name, { ...slow(backend), readersMax: 1, busyMsMax: 30_000 }),
        );
        const source = engine(from, { tensors: large });
        await source.ask({ do: "fill", salt: "x" });
        await source.ask({ do: "publish" });
        const targets = chain.map((one) => engine(one, { tensors: large, isTarget: true }));
        await Promise.all(targets.map((one) => one.ready));
        const loads: Promise<Loaded>[] = [];
        for (const target of targets) {
          loads.push(target.ask<Loaded>(loadFrom(from)));
          // A GPU may be done before the next one asks; the fake needs a second.
          if (backend === "fake") await pause(150);
        }
        const loaded = await Promise.all(loads);
        for (const one of targets)
          assert.deepEqual(await one.ask({ do: "differing", salt: "x" }), []);
        if (backend === "cuda") return;
        const relayed = loaded.filter(({ sources }) => sources[0] !== from.address);
        assert.ok(relayed.length > 0, "nobody read from a target that was still loading");
      });
    });

    test("a target whose source is a loading target that dies goes to another, and keeps what it has", async () => {
      await world(async ({ agent, engine }) => {
        const from = agent("a", { readersMax: 1 });
        // Over a network a dead reader is noticed by its lease alone.
        const { limits, ...slowly } = slow(backend);
        const brief = { ...limits, leaseMs: 3_000 };
        const between = agent("b", { ...slowly, limits: brief, isProcess: true });
        const to = agent("c", { busyMsMax: 20_000 });
        const source = engine(from, { tensors: large });
        await source.ask({ do: "fill", salt: "x" });
        await source.ask({ do: "publish" });
        const relay = engine(between, { tensors: large, isTarget: true, isProcess: true });
        const target = engine(to, { tensors: large, isTarget: true });
        await Promise.all([relay.ready, target.ready]);
        const never = relay.ask(loadFrom(from)).catch(() => "killed");
        if (backend === "fake") await until(async () => (await from.readers()) === 1);
        const loading = target.ask<Loaded>(loadFrom(from));
        await pause(200);
        await between.kill();
        await relay.kill();
        await never;
        await loading;
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
      });
    });

    testOnce("same shapes with other values are refused when a content is demanded", async () => {
      await world(async ({ agent, engine }) => {
        const [right, wrong, to] = [agent("a"), agent("b"), agent("c")];
        const source = engine(right, {});
        await source.ask({ do: "fill", salt: "right" });
        const { content } = await source.ask<Loaded>({ do: "publish" });
        const other = engine(wrong, {});
        await other.ask({ do: "fill", salt: "wrong" });
        await other.ask({ do: "publish" });
        const target = engine(to, { isTarget: true });
        const only = await target.fail({ do: "load", sources: [wrong.address], content });
        assert.equal(only.code, "sources_exhausted");
        assert.equal(only.details["mutated"], false);
        const sources = [wrong.address, right.address];
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
        const [bad, good, to] = [agent("a"), agent("b"), agent("c")];
        const [one, other] = [engine(bad, {}), engine(good, {})];
        for (const source of [one, other]) {
          await source.ask({ do: "fill", salt: "x" });
          await source.ask({ do: "publish" });
        }
        // Behind its agent's back: the manifest still promises the old values.
        await one.ask({ do: "write", tensor: "gate_up", salt: "flipped" });
        const target = engine(to, { isTarget: true });
        const loaded = await target.ask<Loaded>({
          do: "load",
          sources: [bad.address, good.address],
          content: null,
        });
        assert.deepEqual(
          loaded.failures.map(({ code }) => code),
          ["digest_mismatch"],
        );
        assert.deepEqual(loaded.sources, [bad.address, good.address]);
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
      });
    });

    test("with nobody left the load fails, says that memory was written, and names the tensor", async () => {
      await world(async ({ agent, engine }) => {
        const [bad, to] = [agent("a"), agent("b")];
        const source = engine(bad, {});
        await source.ask({ do: "fill", salt: "x" });
        await source.ask({ do: "publish" });
        await source.ask({ do: "write", tensor: "down", salt: "flipped" });
        const target = engine(to, { isTarget: true });
        const failed = await target.fail(loadFrom(bad));
        assert.equal(failed.code, "sources_exhausted");
        assert.equal(failed.details["mutated"], true);
        assert.match(failed.message, /13 of 14 tensors verified.*"down"/);
      });
    });

    testOnce(
      "a draft and its target on one agent, and two pipeline stages, do not meet",
      async () => {
        await world(async ({ agent, engine }) => {
          const [from, to] = [agent("a"), agent("b")];
          const coordinates = [
            { role: "target" },
            { role: "draft" },
            { pipeline: { rank: 1, size: 2 } },
          ] as const;
          for (const [index, coordinate] of coordinates.entries()) {
            const source = engine(from, { coordinate });
            await source.ask({ do: "fill", salt: `part ${index}` });
            await source.ask({ do: "publish" });
          }
          for (const [index, coordinate] of coordinates.entries()) {
            const target = engine(to, { coordinate, isTarget: true });
            await target.ask(loadFrom(from));
            assert.deepEqual(await target.ask({ do: "differing", salt: `part ${index}` }), []);
          }
          const again = engine(from, { coordinate: { role: "draft" } });
          assert.equal((await again.fail({ do: "publish" })).code, "conflict");
          const stranger = engine(to, { coordinate: { tensor: { rank: 1, size: 2 } } });
          const failed = await stranger.fail(loadFrom(from));
          assert.equal(failed.code, "sources_exhausted");
          assert.match(failed.message, /nothing was published for it/);
        });
      },
    );

    testOnce(
      "an engine that updates its weights publishes them anew, as another generation",
      async () => {
        await world(async ({ agent, engine }) => {
          const [from, to] = [agent("a"), agent("b")];
          const source = engine(from, {});
          await source.ask({ do: "fill", salt: "old" });
          const old = await source.ask<Loaded>({ do: "publish" });
          const renewed = await source.ask<Loaded>({ do: "update", key: old.key, salt: "new" });
          assert.equal(renewed.generation, old.generation + 1);
          assert.notEqual(renewed.content, old.content);
          const target = engine(to, { isTarget: true });
          assert.equal((await target.ask<Loaded>(loadFrom(from))).content, renewed.content);
          assert.deepEqual(await target.ask({ do: "differing", salt: "new" }), []);
        });
      },
    );

    testOnce(
      "a source whose engine was killed before the read is replaced by another",
      async () => {
        await world(async ({ agent, engine }) => {
          const [dead, live, to] = [agent("a"), agent("b"), agent("c")];
          const [one, other] = [engine(dead, { isProcess: true }), engine(live, {})];
          for (const source of [one, other]) {
            await source.ask({ do: "fill", salt: "x" });
            await source.ask({ do: "publish" });
          }
          await one.kill();
          const target = engine(to, { isTarget: true });
          const sources = [dead.address, live.address];
          const loaded = await target.ask<Loaded>({ do: "load", sources, content: null });
          assert.deepEqual(loaded.sources, [live.address]);
          assert.ok(
            ["no_source", "device_handle_invalid"].includes(loaded.failures[0]?.code ?? ""),
          );
          assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
        });
      },
    );

    testOnce(
      "an agent that was killed, and one that accepts and never answers, cost a bounded time",
      async () => {
        await world(async ({ agent, engine, directory }) => {
          const dead = agent("a", { isProcess: true });
          const [live, to] = [agent("b"), agent("c")];
          const source = engine(live, {});
          await source.ask({ do: "fill", salt: "x" });
          await source.ask({ do: "publish" });
          await dead.ready;
          await dead.kill();
          const silent = createServer().listen(join(directory, "silent"));
          const target = engine(to, { isTarget: true });
          const sources = [dead.address, join(directory, "silent"), live.address];
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
      },
    );

    testOnce("a killed target gives its lease back, and the source goes on serving", async () => {
      await world(async ({ agent, engine }) => {
        const from = agent("a", { readersMax: 1 });
        const first = agent("b", { ...slow(backend), isProcess: true, isRelay: false });
        const second = agent("c");
        const source = engine(from, { tensors: large });
        await source.ask({ do: "fill", salt: "x" });
        await source.ask({ do: "publish" });
        const doomed = engine(first, { tensors: large, isTarget: true, isProcess: true });
        const blocked = engine(second, { tensors: large, isTarget: true });
        await Promise.all([doomed.ready, blocked.ready]);
        const never = doomed.ask(loadFrom(from)).catch(() => "killed");
        // A GPU may be done before one looks; the fake needs a second.
        if (backend === "fake") {
          await until(async () => (await from.readers()) === 1);
          const busy = await blocked.fail(loadFrom(from));
          assert.match(busy.message, /as many readers as it admits/);
        }
        await first.kill();
        await doomed.kill();
        await never;
        await untilLoaded(blocked, loadFrom(from));
        assert.deepEqual(await blocked.ask({ do: "differing", salt: "x" }), []);
        assert.deepEqual(await source.ask({ do: "differing", salt: "x" }), []);
      });
    });

    test("a source killed in the middle of the read: what verified stays, the rest comes from another", async () => {
      await world(async ({ agent, engine }) => {
        const dying = agent("a", { isProcess: true });
        const [live, to] = [agent("b"), agent("c", slow(backend))];
        const one = engine(dying, { tensors: large, isProcess: true });
        const other = engine(live, { tensors: large });
        for (const source of [one, other]) {
          await source.ask({ do: "fill", salt: "x" });
          await source.ask({ do: "publish" });
        }
        const target = engine(to, { tensors: large, isTarget: true });
        const sources = [dying.socket, live.address];
        await target.ready;
        const loading = target.ask<Loaded>({ do: "load", sources, content: null });
        await pause(300);
        await one.kill();
        await dying.kill();
        await loading;
        assert.deepEqual(await target.ask({ do: "differing", salt: "x" }), []);
      });
    });

    test("a source that changes in the middle of the read is read again, whole", async () => {
      await world(async ({ agent, engine }) => {
        const from = agent("a");
        const to = agent("b", slow(backend));
        const source = engine(from, { tensors: large });
        await source.ask({ do: "fill", salt: "old" });
        const { key } = await source.ask<Loaded>({ do: "publish" });
        const target = engine(to, { tensors: large, isTarget: true });
        await target.ready;
        const loading = target.ask<Loaded>(loadFrom(from));
        if (backend === "fake") await until(async () => (await from.readers()) === 1);
        await pause(200);
        const renewed = await source.ask<Loaded>({ do: "update", key, salt: "new" });
        const loaded = await loading;
        const salt = loaded.content === renewed.content ? "new" : "old";
        // Only the fake is slow enough for the change to come surely in the middle.
        if (backend === "fake") assert.equal(salt, "new");
        assert.deepEqual(await target.ask({ do: "differing", salt }), []);
      });
    });

    testOnce(
      "a load without a source, and one whose only source is not there, say so",
      async () => {
        await world(async ({ agent, engine }) => {
          const target = engine(agent("a"), {});
          const none = await target.fail({ do: "load", sources: [], content: null });
          assert.equal(none.code, "no_source");
          const failed = await target.fail({ do: "load", sources: ["/nowhere"], content: null });
          assert.equal(failed.code, "sources_exhausted");
          assert.equal(failed.details["mutated"], false);
        });
      },
    );
  });
}

function loadFrom(agent: Part): EngineCommand {
  return { do: "load", sources: [agent.address], content: null };
}

/** 1 MiB at 1 MiB/s: a second, in which to act. */
function slow(backend: "cuda" | "fake"): Partial<AgentArguments> {
  if (backend === "cuda") return {};
  return { bytesPerSecond: 2 ** 20, limits: { batchBytes: 2 ** 16 } };
}
