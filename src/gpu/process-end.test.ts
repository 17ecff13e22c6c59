// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { test } from "node:test";
import { ProcessWatch } from "./process-end.ts";

test("ProcessWatch calls once when the process has been killed, and not before", async () => {
  const child = spawn("sleep", ["30"]);
  await new Promise((resolve) => child.once("spawn", resolve));
  let calls = 0;
  const ended = Promise.withResolvers<void>();
  using _watch = new ProcessWatch(child.pid ?? -1, () => {
    calls++;
    ended.resolve();
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(calls, 0);
  child.kill("SIGKILL");
  await ended.promise;
  assert.equal(calls, 1);
});

test("ProcessWatch calls for a process that does not exist", async () => {
  const ended = Promise.withResolvers<void>();
  using _watch = new ProcessWatch(2 ** 22 + 1, ended.resolve);
  await ended.promise;
});
