// SPDX-License-Identifier: Apache-2.0
// What a pull does when its own side fails, and the cap while the source serves; on the fake, with
// sources that hand over memory without sockets. Everything between processes: test/contracts/weights.ts.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type TensorSpec, TestEngine } from "../../test/contracts/weights-engine.ts";
import { type Code, RelightError } from "../errors.ts";
import { GpuDigester } from "../gpu/digest.ts";
import { fakeDigestImage, fakeDigestKernels } from "../gpu/digest-reference.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import { FakeDriver } from "../gpu/fake.ts";
import { type Clock, systemClock } from "../platform/clock.ts";
import { type Carrier, mappedCarrier } from "./carrier.ts";
import { type DeviceParts, digestLayout } from "./publish.ts";
import { type PullLimits, pullWeights } from "./pull.ts";
import { haveAll, type WeightSource } from "./source.ts";

const KiB = 1_024;
const tensors: readonly TensorSpec[] = Array.from({ length: 8 }, (_, index) => ({
  name: `layers.${index}`,
  dtype: "uint8",
  shape: [16 * KiB],
  stride: [1],
}));
const limits: PullLimits = {
  batchBytes: 32 * KiB,
  leaseMs: 10_000,
  bytesPerSecondMax: Number.POSITIVE_INFINITY,
  bytesPerSecondMin: 1_024 * KiB,
  silenceMsMax: 5_000,
};

describe("pullWeights()", { timeout: 30_000 }, () => {
  test("keeps to the cap while the source serves", async () => {
    await world(async ({ pull }) => {
      const clock = new SteppedClock();
      const bytesPerSecondMax = 64 * KiB;
      const report = await pull({ clock, limits: { ...limits, bytesPerSecondMax } });
      assert.equal(report.bytes, 128 * KiB);
      assert.ok(clock.monotonicMs() >= 2_000, `${clock.monotonicMs()} ms for two seconds' bytes`);
      assert.ok(clock.longestMs <= 600, "each pause is a batch's, so that it can be stopped");
    });
  });

  test("a GPU without room is told as such, before anything is written or anybody else is asked", async () => {
    await world(async ({ pull, source }) => {
      const asked: string[] = [];
      const sources = ["a", "b"].map((name) => spied(source, name, asked));
      const error = await failure(pull({ sources, memoryBytes: 1 }), "device_memory");
      assert.deepEqual(asked, ["a"]);
      assert.equal(error.details["mutated"], false);
    });
  });

  test("a GPU that this agent does not see is device_unsupported", async () => {
    await world(async ({ pull }) => {
      await failure(pull({ deviceUuid: "GPU-elsewhere" }), "device_unsupported");
    });
  });

  test("a cancelled pull says so, and writes nothing after it has returned", async () => {
    await world(async ({ pull, target }) => {
      const controller = new AbortController();
      const pulling = pull({ signal: controller.signal, bytesPerSecond: 512 * KiB });
      setTimeout(() => controller.abort(), 60);
      const error = await failure(pulling, "cancelled");
      assert.equal(error.details["mutated"], true);
      await target.poison();
      assert.equal((await target.differing("x")).length, tensors.length);
      await systemClock.sleep(100, new AbortController().signal);
      assert.equal((await target.differing("x")).length, tensors.length);
    });
  });

  test("a source over a link slower than the slowest allowed is left for the next", async () => {
    await world(async ({ pull, source }) => {
      const slow = { ...limits, silenceMsMax: 20, bytesPerSecondMin: 2 ** 30 };
      const asked: string[] = [];
      const sources = ["a", "b"].map((name) => spied(source, name, asked));
      const pulling = pull({ sources, limits: slow, bytesPerSecond: 64 * KiB });
      const error = await failure(pulling, "sources_exhausted");
      assert.deepEqual(asked, ["a", "b"]);
      assert.equal(error.details["mutated"], true);
    });
  });

  test("a tensor over two batches is checked when both are there, whichever comes first", async () => {
    await world(async ({ pull, source, target }) => {
      const later = Promise.withResolvers<void>();
      const uneven: WeightSource = {
        ...source,
        claim: async (...given) => ({
          ...(await source.claim(...given)),
          open: async (to) => firstComesLast(mappedCarrier(to, source.handles), later),
        }),
      };
      // 24 KiB: each second tensor of 16 KiB begins in one batch and ends in the next.
      const cut = { ...limits, batchBytes: 24 * KiB };
      const report = await pull({ sources: [uneven], limits: cut });
      assert.deepEqual(report.failures, []);
      assert.deepEqual(await target.differing("x"), []);
    });
  });

  test("a handle that cannot be opened leads to the next source", async () => {
    await world(async ({ pull, source, target }) => {
      const handles = target.handles.map(
        () => ({ kind: "ipc", handle: new Uint8Array(64).fill(1), bytes: 4_096 }) as const,
      );
      const broken: WeightSource = {
        ...source,
        name: "broken",
        claim: async (...given) => ({
          ...(await source.claim(...given)),
          open: async (to) => mappedCarrier(to, handles),
        }),
      };
      const report = await pull({ sources: [broken, source] });
      assert.deepEqual(
        report.failures.map(({ code }) => code),
        ["device_handle_invalid"],
      );
      assert.deepEqual(report.sources, [source.name]);
      assert.deepEqual(await target.differing("x"), []);
    });
  });
});

/** Brings its first delivery once the second is there. */
function firstComesLast(carrier: Carrier, later: PromiseWithResolvers<void>): Carrier {
  let count = 0;
  return {
    ...carrier,
    deliveriesMax: 2,
    bring: async (delivery, wait) => {
      count += 1;
      const isFirst = count === 1;
      if (isFirst) await later.promise;
      await carrier.bring(delivery, wait);
      // Long enough for the second to be judged, if nothing held that back.
      if (!isFirst) setTimeout(() => later.resolve(), 80);
    },
  };
}

interface PullOver {
  readonly sources?: readonly WeightSource[];
  readonly limits?: PullLimits;
  readonly clock?: Clock;
  readonly signal?: AbortSignal;
  readonly memoryBytes?: number;
  readonly bytesPerSecond?: number;
  readonly deviceUuid?: string;
}

interface World {
  readonly source: WeightSource & { readonly handles: readonly MemoryHandle[] };
  readonly target: TestEngine;
  readonly pull: (over: PullOver) => ReturnType<typeof pullWeights>;
}

async function world(run: (world: World) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "relight-pull-"));
  const engines = new FakeDriver({ directory });
  const shape = { tensors, sharing: "ipc", allocationCount: 2, isReversed: false } as const;
  try {
    const from = await TestEngine.open({ ...shape, driver: engines, ordinal: 0 });
    const target = await TestEngine.open({ ...shape, driver: engines, ordinal: 1 });
    await from.fill("x");
    const source = await sourceOf(from, directory);
    await run({
      source,
      target,
      pull: async ({ sources, clock, signal, deviceUuid, limits: given, ...driver }) => {
        await using agent = new FakeDriver({ directory, kernels: fakeDigestKernels, ...driver });
        const memory = { deviceUuid: deviceUuid ?? target.deviceUuid, handles: target.handles };
        const job = { target: target.layout, memory, content: null, limits: given ?? limits };
        const parts = { ...partsOf(agent), clock: clock ?? systemClock };
        const within = signal ?? new AbortController().signal;
        return await pullWeights(parts, { ...job, sources: sources ?? [source] }, within);
      },
    });
  } finally {
    await engines[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true, force: true });
  }
}

async function sourceOf(engine: TestEngine, directory: string): Promise<World["source"]> {
  await using agent = new FakeDriver({ directory, kernels: fakeDigestKernels });
  const wait = { signal: AbortSignal.timeout(20_000), deadlineMs: 10_000 };
  const what = { layout: engine.layout, memory: engine };
  const { manifest } = await digestLayout(partsOf(agent), what, { generation: 1, wait });
  return {
    name: "source",
    handles: engine.handles,
    offer: async () => manifest,
    claim: async () => ({
      isComplete: true,
      bytesPerSecondMax: Number.POSITIVE_INFINITY,
      open: async (target) => mappedCarrier(target, engine.handles),
      renew: async () => ({ bytesPerSecondMax: Number.POSITIVE_INFINITY }),
      have: async () => haveAll,
      [Symbol.asyncDispose]: async () => undefined,
    }),
  };
}

function partsOf(driver: FakeDriver): DeviceParts {
  return {
    driver,
    openDigester: (stay, segmentCountMax) =>
      GpuDigester.open(
        driver,
        { handle: stay.context, multiprocessorCount: stay.device.multiprocessorCount },
        { image: fakeDigestImage, segmentCountMax },
      ),
  };
}

function spied(source: WeightSource, name: string, asked: string[]): WeightSource {
  return {
    ...source,
    name,
    offer: (...given) => {
      asked.push(name);
      return source.offer(...given);
    },
  };
}

/** Time passes only by sleeping. */
class SteppedClock implements Clock {
  longestMs = 0;
  #nowMs = 0;

  wallMs(): number {
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  async sleep(ms: number): Promise<void> {
    this.longestMs = Math.max(this.longestMs, ms);
    this.#nowMs += ms;
  }
}

async function failure(promise: Promise<unknown>, code: Code): Promise<RelightError> {
  const error = await promise.then(
    () => assert.fail("it did not fail"),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof RelightError, String(error));
  assert.equal(error.code, code, error.message);
  return error;
}
