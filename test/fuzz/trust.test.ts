// SPDX-License-Identifier: Apache-2.0
// Ten seconds for each parser that reads what strangers wrote about trust: envelopes, statements,
// policies, certificates and tokens. The five run at the same time in processes of lowest priority, so
// that they cost the whole run the ten seconds and not fifty. `npm run fuzz` runs them for longer.

import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import path from "node:path";
import { describe, test } from "node:test";
import { promisify } from "node:util";

const seconds = 10;
const run = promisify(execFile);
const program = path.join(import.meta.dirname, "fuzz-process.ts");
const parsers = {
  envelopes: "envelope",
  statements: "statement",
  policies: "policy",
  certificates: "certificate",
  tokens: "token",
};

describe("fuzz of trust", { concurrency: Object.keys(parsers).length }, () => {
  const seed = seedOfCommit();
  for (const [name, parser] of Object.entries(parsers)) {
    test(`${seconds} s of ${name} give values or RelightErrors, whatever the bytes`, async (context) => {
      const file = path.join(import.meta.dirname, `trust-${parser}.fuzz.ts`);
      const words = [program, file, String(seconds), String(seed)];
      const { stdout } = await run(process.execPath, words, { timeout: 120_000 });
      const lines = stdout.trim().split("\n");
      for (const line of lines) {
        context.diagnostic(`${line}, seed ${seed}`);
        const [, inputs] = /: (\d+) inputs/.exec(line) ?? [];
        assert.ok(Number(inputs) > 10, line);
      }
    });
  }
});

/** Other inputs with each commit, the same ones for the same; 1 outside a checkout. */
function seedOfCommit(): number {
  try {
    const hash = execFileSync("git", ["rev-parse", "--short=7", "HEAD"], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
    return Number.parseInt(hash, 16);
  } catch {
    return 1;
  }
}
