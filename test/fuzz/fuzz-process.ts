// SPDX-License-Identifier: Apache-2.0
// A program: fuzzes the targets of one file for a time that they share, at the lowest priority, so that
// tests beside it are not held up. Prints a line for each; ends with 1 at the first failure.
// Usage: fuzz-process.ts FILE SECONDS SEED

import os from "node:os";
import { performance } from "node:perf_hooks";
import { pathToFileURL } from "node:url";
import { type FuzzTarget, fuzz } from "../support/fuzz.ts";

const [file = "", seconds = "", seed = ""] = process.argv.slice(2);
os.setPriority(os.constants.priority.PRIORITY_LOW);
const { targets }: { targets: readonly FuzzTarget[] } = await import(pathToFileURL(file).href);
for (const target of targets) {
  const { inputCount, acceptedCount } = await fuzz(target, {
    seed: Number(seed),
    inputCountMax: Number.POSITIVE_INFINITY,
    runMsMax: (Number(seconds) * 1_000) / targets.length,
    now: () => performance.now(),
  });
  console.log(`${target.name}: ${inputCount} inputs, ${acceptedCount} accepted`);
}
