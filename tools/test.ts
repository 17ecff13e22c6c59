// SPDX-License-Identifier: Apache-2.0
// `npm test`: every test of src/ and test/ under node:test, two files at a time, with one limit for the
// whole run. Words filter files by path: `npm test -- src/config`. Skips are listed with their reasons;
// `--require-gpu` makes a skipped GPU test a failure.

import { globSync } from "node:fs";
import { join, relative } from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";

/** Longest time for all tests, in milliseconds. */
const runMsMax = 13 * 60_000;
/** Longest time for one test, in milliseconds; test-limit.ts holds its file to the same. */
const testMsMax = 3 * 60_000;
/** Files at once: what two cores carry without tests missing their own deadlines. */
const filesAtOnce = 2;
const slowestCount = 5;

const patterns = [
  "src/**/*.test.ts",
  "kernels/**/*.test.ts",
  "test/**/*.test.ts",
  "test/gpu/**/*.gpu.ts",
];

interface Skip {
  readonly file: string;
  readonly name: string;
  readonly reason: string;
}

const words = process.argv.slice(2);
const isGpuRequired = words.includes("--require-gpu");
const filters = words.filter((word) => !word.startsWith("--"));
const files = globSync(patterns)
  .filter((file) => filters.length === 0 || filters.some((filter) => file.includes(filter)))
  .sort();

if (files.length === 0) {
  console.error(`error: no test file matches ${JSON.stringify(filters)}`);
  process.exit(1);
}

// Tests start hundreds of processes that load the same sources: types are erased and code compiled once.
process.env["NODE_COMPILE_CACHE"] ??= join(
  import.meta.dirname,
  "../node_modules/.cache/node-compile",
);

const skips: Skip[] = [];
const durations = new Map<string, number>();
let executedCount = 0;
let failedCount = 0;

const limit = AbortSignal.timeout(runMsMax);
limit.addEventListener("abort", () => {
  console.error(`error: the tests did not end within ${runMsMax / 60_000} minutes`);
  setTimeout(() => process.exit(1), 5_000).unref();
});

const tests = run({
  files,
  concurrency: filesAtOnce,
  timeout: testMsMax,
  signal: limit,
  execArgv: ["--import", new URL("./test-limit.ts", import.meta.url).href],
});
tests.on("test:pass", (event) => {
  const isSuite = event.details.type === "suite";
  if (event.skip === undefined) executedCount += isSuite ? 0 : 1;
  // A suite that is skipped has no tests that could be counted as skipped.
  else skips.push({ file: shortPath(event.file), name: event.name, reason: String(event.skip) });
});
tests.on("test:fail", () => failedCount++);
tests.on("test:summary", (event) => {
  if (event.file !== undefined) durations.set(shortPath(event.file), event.duration_ms);
});
tests.compose(spec).pipe(process.stdout);
tests.on("close", () => {
  // The reporter still has its closing lines to write when the stream of events has ended.
  setImmediate(finish);
});

function finish(): void {
  const slowest = [...durations].sort((a, b) => b[1] - a[1]).slice(0, slowestCount);
  console.log(
    `slowest: ${slowest.map(([file, ms]) => `${file} ${(ms / 1_000).toFixed(1)} s`).join(", ")}`,
  );
  for (const skip of skips) console.log(`skipped: ${skip.file}: ${skip.name}: ${skip.reason}`);
  const problems = [
    ...(limit.aborted ? ["the run was ended by its limit"] : []),
    ...(executedCount === 0 ? ["no test was executed"] : []),
    ...(isGpuRequired && skips.some(wantsGpu) ? ["a test that wants a GPU was skipped"] : []),
  ];
  for (const problem of problems) console.error(`error: ${problem}`);
  process.exitCode = failedCount === 0 && problems.length === 0 ? 0 : 1;
}

function wantsGpu(skip: Skip): boolean {
  return skip.file.endsWith(".gpu.ts") || /\b(libcuda|cuda|gpu)\b/i.test(skip.reason);
}

function shortPath(file: string | undefined): string {
  return file === undefined ? "" : relative(process.cwd(), file);
}
