// SPDX-License-Identifier: Apache-2.0
// Every fuzz target for a moment on each change, but for those of trust, which trust.test.ts runs for
// longer; `npm run fuzz` runs all for as long as one likes. The canaries fail on purpose: a fuzzer that
// finds nothing in them finds nothing anywhere.

import assert from "node:assert/strict";
import { globSync } from "node:fs";
import { performance } from "node:perf_hooks";
import { describe, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { InvariantError, RelightError } from "../../src/errors.ts";
import { type FuzzLimits, type FuzzTarget, fuzz } from "../support/fuzz.ts";

const limits: FuzzLimits = {
  seed: 1,
  inputCountMax: 2_000,
  runMsMax: 1_000,
  now: () => performance.now(),
};

const here = fileURLToPath(new URL(".", import.meta.url));
const files = globSync("*.fuzz.ts", { cwd: here })
  .filter((file) => !file.startsWith("trust-"))
  .sort();

describe("fuzz smoke", async () => {
  for (const file of files) {
    const { targets }: { targets: readonly FuzzTarget[] } = await import(
      pathToFileURL(`${here}${file}`).href
    );
    for (const target of targets) {
      test(`${target.name} gives a value or a RelightError, whatever the bytes`, async (context) => {
        const { inputCount, acceptedCount } = await fuzz(target, limits);
        context.diagnostic(`${target.name}: ${inputCount} inputs, ${acceptedCount} accepted`);
        assert.ok(inputCount > target.seeds.length, "no input was mutated");
      });
    }
  }
});

describe("fuzz()", () => {
  const canary = (run: FuzzTarget["run"]): FuzzTarget => ({
    name: "canary",
    seeds: ["abc,def"],
    run,
  });

  test("finds a foreign error behind one changed byte", async () => {
    const target = canary((bytes) => {
      if (bytes.includes(0)) throw new TypeError("found");
    });
    await assert.rejects(fuzz(target, limits), /canary: threw a foreign error: found; input /);
  });

  test("finds a broken invariant, and a claim that fails for an accepted value", async () => {
    const invariant = canary((bytes) => {
      if (bytes.length > 20) throw new InvariantError("short");
    });
    await assert.rejects(fuzz(invariant, limits), /broke an invariant/);
    const claim = canary((bytes) => assert.ok(bytes.length < 100));
    await assert.rejects(fuzz(claim, limits), /threw a foreign error/);
  });

  test("finds an input that takes too long", async () => {
    let now = 0;
    const target = canary(() => {
      now += 6_000;
    });
    await assert.rejects(fuzz(target, { ...limits, now: () => now }), /took 6000 ms/);
  });

  test("refuses a target whose seeds are refused", async () => {
    const target = canary(() => {
      throw new RelightError("request_invalid", "Cannot: never");
    });
    await assert.rejects(fuzz(target, limits), /the seed was refused/);
  });

  test("gives the same inputs for the same seed", async () => {
    const inputsOf = async (seed: number) => {
      const inputs: string[] = [];
      const target = canary((bytes) => void inputs.push(Buffer.from(bytes).toString("hex")));
      await fuzz(target, { ...limits, seed, inputCountMax: 200 });
      return inputs;
    };
    assert.deepEqual(await inputsOf(7), await inputsOf(7));
    assert.notDeepEqual(await inputsOf(7), await inputsOf(8));
  });
});
