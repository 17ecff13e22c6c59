// SPDX-License-Identifier: Apache-2.0
// Loaded into each test process: a file that has not ended after its time is ended, and named with what
// kept it alive. node:test limits tests, not a process that lingers after its last one.

/** Longest time for one test file, in milliseconds. */
const fileMsMax = 3 * 60_000;

setTimeout(() => {
  const kept = [...new Set(process.getActiveResourcesInfo())].join(", ");
  console.error(
    `error: ${process.argv[1]} did not end within ${fileMsMax / 60_000} minutes: ${kept}`,
  );
  process.exit(1);
}, fileMsMax).unref();
