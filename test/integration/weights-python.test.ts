// SPDX-License-Identifier: Apache-2.0
// The engine plugin: its own tests with a stub torch, and a Python engine against a real agent on the
// fake GPU, so that both ends of the socket are the ones that are shipped.

import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { TestAgent } from "../contracts/weights-agent.ts";

const python = fileURLToPath(new URL("../../python", import.meta.url));
const environment = { ...process.env, PYTHONPATH: python, PYTHONDONTWRITEBYTECODE: "1" };
const missing = pythonMissing();

describe("engine plugin", { timeout: 60_000 }, () => {
  test("its own tests pass", { skip: missing }, () => {
    execFileSync("python3", ["-m", "unittest", "discover", "-s", "tests"], {
      cwd: python,
      env: environment,
      stdio: "pipe",
    });
  });

  test("load_into() fills a module from what publish() offered, through two agents", {
    skip: missing,
  }, async () => {
    const directory = mkdtempSync(join(tmpdir(), "relight-py-"));
    const [from, to] = [join(directory, "a"), join(directory, "b")];
    await using _from = new TestAgent({ backend: "fake", socket: from, directory });
    await using _to = new TestAgent({ backend: "fake", socket: to, directory });
    const started: ChildProcess[] = [];
    try {
      const source = await startEngine(started, ["publish", from, directory, "salt"]);
      assert.match(String(source["content"]), /^[0-9a-f]{64}$/);
      const target = await startEngine(started, ["load", to, directory, "salt", from]);
      assert.deepEqual(target, { warm: true, code: "", mutated: false, equal: [true, true] });
      const cold = await startEngine(started, ["load", to, directory, "salt", "/nowhere"]);
      assert.equal(cold["warm"], false);
      assert.equal(cold["code"], "sources_exhausted");
      assert.equal(cold["mutated"], false);
    } finally {
      for (const child of started) {
        child.stdin?.end();
        if (child.exitCode === null) await once(child, "exit");
      }
      rmSync(directory, { recursive: true, force: true });
    }
  });
});

async function startEngine(
  started: ChildProcess[],
  words: readonly string[],
): Promise<Readonly<Record<string, unknown>>> {
  const script = join(python, "tests/fake_engine.py");
  const child = spawn("python3", [script, ...words], {
    env: environment,
    stdio: ["pipe", "pipe", "inherit"],
  });
  started.push(child);
  const { value } = await createInterface({ input: child.stdout })[Symbol.asyncIterator]().next();
  return JSON.parse(String(value)) as Readonly<Record<string, unknown>>;
}

function pythonMissing(): string | false {
  try {
    execFileSync("python3", ["--version"], { stdio: "pipe" });
    return false;
  } catch {
    return "python3 is not on this machine";
  }
}
