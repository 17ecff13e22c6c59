// SPDX-License-Identifier: Apache-2.0
// `npm run fuzz [-- NAME] [--seconds=10] [--seed=N]`: each target of test/fuzz/ for that long. Ends at
// the first failure with the input that made it.

import { randomInt } from "node:crypto";
import { globSync } from "node:fs";
import { resolve } from "node:path";
import { performance } from "node:perf_hooks";
import { pathToFileURL } from "node:url";
import { type FuzzTarget, fuzz } from "../test/support/fuzz.ts";

const words = process.argv.slice(2);
const seconds = numberOf("--seconds", 10);
const seed = numberOf("--seed", randomInt(2 ** 31));
const name = words.find((word) => !word.startsWith("--")) ?? "";

for (const file of globSync("test/fuzz/*.fuzz.ts").sort()) {
  const { targets }: { targets: readonly FuzzTarget[] } = await import(
    pathToFileURL(resolve(file)).href
  );
  for (const target of targets.filter((one) => one.name.includes(name))) {
    console.log(`${target.name}: ${seconds} s, seed ${seed}`);
    const { inputCount, acceptedCount } = await fuzz(target, {
      seed,
      inputCountMax: Number.POSITIVE_INFINITY,
      runMsMax: seconds * 1_000,
      now: () => performance.now(),
    });
    console.log(`  ${inputCount} inputs, ${acceptedCount} accepted`);
  }
}

function numberOf(flag: string, fallback: number): number {
  const text = words.find((word) => word.startsWith(`${flag}=`))?.slice(flag.length + 1);
  return text === undefined ? fallback : Number(text);
}
