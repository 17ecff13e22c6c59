// SPDX-License-Identifier: Apache-2.0
// Asking an engine's Python before anybody waits for the answer.

import assert from "node:assert/strict";
import fs from "node:fs";
import { describe, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { rejectsWith } from "../../test/support/rejects.ts";
import { type TemporaryFolder, temporaryFolder } from "../../test/support/temporary-folder.ts";
import { startProbe } from "./probe.ts";

/** An interpreter that marks its start, and then does as `script` says. */
function interpreter(folder: TemporaryFolder, script: string): string {
  folder.write("python3", `#!/bin/sh\ntouch ${folder.path("started")}\n${script}\n`);
  fs.chmodSync(folder.path("python3"), 0o755);
  return folder.path("python3");
}

const env = { PATH: process.env["PATH"] };
const answer = '{"facts":{"torch":"2.11.0"},"failures":{}}';

describe("startProbe()", () => {
  test("has asked before anybody waits", async () => {
    using folder = temporaryFolder();
    const python = interpreter(folder, `echo '${answer}'`);
    const probe = startProbe({ command: [], python, framework: "", env }, 30_000);
    while (!fs.existsSync(folder.path("started"))) await delay(10);
    const { facts } = await probe(new AbortController().signal);
    assert.deepEqual(facts, { torch: "2.11.0" });
  });

  test("is probe_failed once its own limit or the one of who waits is over", async () => {
    using folder = temporaryFolder();
    const python = interpreter(folder, "exec sleep 60");
    const of = { command: [], python, framework: "", env };
    await rejectsWith("probe_failed", startProbe(of, 50)(new AbortController().signal));
    await rejectsWith("probe_failed", startProbe(of, 60_000)(AbortSignal.timeout(50)));
  });

  test("that nobody waits for fails quietly", async () => {
    startProbe({ command: ["/nonexistent/engine"], python: "", framework: "", env }, 1_000);
    await delay(0);
  });
});
