// SPDX-License-Identifier: Apache-2.0
// Real torch modules in two Python processes, both of torch's allocators: the target ends with the
// source's values at the addresses that it had before.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { TestAgent } from "../contracts/weights-agent.ts";
import { gpuMissing } from "./gpu-present.ts";

const python = fileURLToPath(new URL("../../python", import.meta.url));
const skip = await gpuMissing(1);
const lastDevice = skip === false && (await gpuMissing(2)) === false ? "1" : "0";

const allocators = ["native", "expandable_segments", "reserved"] as const;
type Allocator = (typeof allocators)[number];

interface Told {
  readonly sums: Readonly<Record<string, number>>;
  readonly [field: string]: unknown;
}

describe("torch modules", { timeout: 150_000 }, () => {
  for (const allocator of allocators) {
    test(`load_into() fills a torch module in place, allocator ${allocator}`, {
      skip,
    }, async () => {
      const directory = mkdtempSync(join(tmpdir(), "relight-torch-"));
      const [from, to] = [join(directory, "a"), join(directory, "b")];
      const given = { backend: "cuda", directory } as const;
      await using _from = new TestAgent({ ...given, socket: from });
      await using _to = new TestAgent({ ...given, socket: to });
      const engines: Engine[] = [];
      const start = (words: readonly string[]) => {
        const engine = new Engine(words, allocator);
        engines.push(engine);
        return engine;
      };
      try {
        const source = start(["publish", from, "0", "1"]);
        const published = await source.told();
        assert.match(String(published["content"]), /^[0-9a-f]{64}$/, JSON.stringify(published));
        const target = start(["load", to, lastDevice, "2", from]);
        const loaded = await target.told();
        assert.equal(loaded["warm"], true, String(loaded["message"]));
        assert.equal(loaded["kept"], true);
        // Cut from what was reserved, all large tensors are one allocation to whoever reads them.
        if (allocator === "reserved") assert.equal(loaded["allocations"], 1);
        assert.deepEqual(loaded.sums, published.sums);
        source.say("3");
        const changed = await source.told();
        assert.notEqual(changed["content"], published["content"]);
        await target.end();
        const later = await start(["load", to, lastDevice, "2", from]).told();
        assert.deepEqual(later.sums, changed.sums);
      } finally {
        await Promise.all(engines.map((engine) => engine.end()));
        rmSync(directory, { recursive: true, force: true });
      }
    });
  }
});

class Engine {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(words: readonly string[], allocator: Allocator) {
    const settings = {
      native: {},
      expandable_segments: { PYTORCH_CUDA_ALLOC_CONF: "expandable_segments:True" },
      reserved: { RELIGHT_TEST_RESERVE: "true" },
    }[allocator];
    const child = spawn("python3", [join(python, "tests/torch_engine.py"), ...words], {
      env: { ...process.env, ...settings, PYTHONPATH: python, PYTHONDONTWRITEBYTECODE: "1" },
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#child = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  async told(): Promise<Told> {
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error("the engine has ended");
    return JSON.parse(value) as Told;
  }

  say(line: string): void {
    this.#child.stdin?.write(`${line}\n`);
  }

  async end(): Promise<void> {
    this.#child.stdin?.end();
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      await once(this.#child, "exit");
    }
  }
}
