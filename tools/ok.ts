// SPDX-License-Identifier: Apache-2.0
// `npm run ok`: everything that decides whether a change may be merged. All steps run, so that one
// report shows all that is wrong; `--without=tests,knip` leaves steps out.

import { spawnSync } from "node:child_process";

/** Each step's words after `node`. */
const steps = {
  lint: ["node_modules/@biomejs/biome/bin/biome", "check", "--diagnostic-level=warn", "."],
  types: ["node_modules/typescript/bin/tsc", "--noEmit"],
  layers: ["tools/layers.ts"],
  docs: ["tools/docs.ts", "--check"],
  knip: ["node_modules/knip/bin/knip.js"],
  tests: ["tools/test.ts"],
  // Seeds of this commit's own, so that every change plays other histories.
  simulation: ["test/simulation/main.ts", "--seeds=200", "--replicas=16", "--seed=commit"],
} as const;

const left = process.argv.find((word) => word.startsWith("--without="));
const without = new Set(left?.slice("--without=".length).split(","));
const failed: string[] = [];

for (const [name, words] of Object.entries(steps)) {
  if (without.has(name)) continue;
  const began = performance.now();
  const { status } = spawnSync(process.execPath, words, { stdio: "inherit" });
  const seconds = ((performance.now() - began) / 1_000).toFixed(1);
  console.log(`${status === 0 ? "ok" : "FAILED"} ${name} ${seconds} s`);
  if (status !== 0) failed.push(name);
}

console.log(failed.length === 0 ? "all is well" : `failed: ${failed.join(", ")}`);
process.exitCode = failed.length === 0 ? 0 : 1;
