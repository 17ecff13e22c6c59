// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { TestEngine } from "../../test/contracts/weights-engine.ts";
import { rejectsWith } from "../../test/support/rejects.ts";
import { RelightError } from "../errors.ts";
import type { Handle } from "../gpu/driver.ts";
import { FakeDriver } from "../gpu/fake.ts";
import { systemClock } from "../platform/clock.ts";
import { WeightServing } from "./serving.ts";
import { sourceFailure } from "./source-failure.ts";
import { slotBytes } from "./staged-carrier.ts";

const never = new AbortController().signal;
const tensors = [{ name: "w", dtype: "uint8", shape: [64 * 1_024], stride: [1] }] as const;

/** Counts the contexts that are open. */
class CountedDriver extends FakeDriver {
  readonly contexts = new Set<number>();

  override async openContext(ordinal: number) {
    const context = await super.openContext(ordinal);
    this.contexts.add(context.handle);
    return context;
  }

  override async close(handle: Handle<string>): Promise<void> {
    this.contexts.delete(handle);
    await super.close(handle);
  }
}

interface Served {
  readonly serving: WeightServing;
  readonly driver: CountedDriver;
  readonly engine: TestEngine;
}

async function served(run: (served: Served) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "relight-serving-"));
  const engines = new FakeDriver({ directory });
  const driver = new CountedDriver({ directory });
  try {
    const shape = { sharing: "ipc", allocationCount: 1, isReversed: false } as const;
    const engine = await TestEngine.open({ ...shape, tensors, driver: engines, ordinal: 0 });
    await engine.fill("x");
    await using serving = new WeightServing({
      parts: { driver, clock: systemClock },
      slotsMax: 2,
      bytesPerSecondMax: Number.POSITIVE_INFINITY,
      idleMsMax: 30,
      rangeMsMax: 5_000,
    });
    await run({ serving, driver, engine });
  } finally {
    await driver[Symbol.asyncDispose]();
    await engines[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true, force: true });
  }
}

describe("WeightServing", { timeout: 20_000 }, () => {
  test("fill() puts ranges one behind the other, and readers beyond the slots wait for a release", async () => {
    await served(async ({ serving, engine }) => {
      const range = (offsetBytes: number) => ({ allocation: 0, offsetBytes, bytes: 1_000 });
      const whole = await serving.fill(engine, [{ ...range(0), bytes: 64 * 1_024 }], never);
      const two = await serving.fill(engine, [range(50_000), range(3)], never);
      const wanted = [...whole.memory.slice(50_000, 51_000), ...whole.memory.slice(3, 1_003)];
      assert.deepEqual([...two.memory], wanted);
      let isThere = false;
      const third = serving.fill(engine, [range(7)], never).then((filled) => {
        isThere = true;
        return filled;
      });
      await systemClock.sleep(20, never);
      assert.ok(!isThere);
      whole.release();
      whole.release();
      assert.deepEqual((await third).memory.slice(0, 3), two.memory.slice(1_004, 1_007));
    });
  });

  test("the context is given back when nobody has read for a while, and opened for the next reader", async () => {
    await served(async ({ serving, driver, engine }) => {
      const ranges = [{ allocation: 0, offsetBytes: 0, bytes: 16 }];
      assert.equal(driver.contexts.size, 0);
      const filled = await serving.fill(engine, ranges, never);
      await systemClock.sleep(60, never);
      assert.equal(driver.contexts.size, 1, "while somebody holds what was filled");
      filled.release();
      for (let wait = 0; wait < 100 && driver.contexts.size > 0; wait += 1) {
        await systemClock.sleep(10, never);
      }
      assert.equal(driver.contexts.size, 0);
      (await serving.fill(engine, ranges, never)).release();
    });
  });

  test("too much at once, an allocation that is not there and a pair that was never opened are refused", async () => {
    await served(async ({ serving, engine }) => {
      const large = [{ allocation: 0, offsetBytes: 0, bytes: slotBytes + 1 }];
      await rejectsWith("request_invalid", serving.fill(engine, large, never));
      const nowhere = [{ allocation: 9, offsetBytes: 0, bytes: 1 }];
      await rejectsWith("source_protocol", serving.fill(engine, nowhere, never));
      const send = { pair: "0".repeat(256), ranges: nowhere };
      await rejectsWith("request_invalid", serving.send(engine, send, never));
      const ranges = [{ allocation: 0, offsetBytes: 0, bytes: 1 }];
      for (let round = 0; round < 3; round += 1) {
        (await serving.fill(engine, ranges, never)).release();
      }
    });
  });
});

test("sourceFailure() turns what is wrong with a source into a reason to go elsewhere", () => {
  const memory = new RelightError("device_memory", "Cannot allocate");
  const turned = sourceFailure("a", memory);
  assert.equal(turned.code, "source_gone");
  assert.equal(turned.details["said"], "device_memory");
  for (const code of ["source_busy", "generation_changed", "cancelled"] as const) {
    const kept = new RelightError(code, "Cannot read");
    assert.equal(sourceFailure("a", kept), kept);
  }
});
