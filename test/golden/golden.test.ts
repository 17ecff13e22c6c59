// SPDX-License-Identifier: Apache-2.0
// What scripts of users hold on to: error codes with their numbers, and the JSON of commands.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { codes } from "../../src/errors.ts";
import { renderPages } from "../../tools/docs-pages.ts";
import { matchesGolden, shapeOf } from "../support/golden.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "relight-golden-"));
after(() => rmSync(scratch, { recursive: true }));

function relight(...words: string[]) {
  return spawnSync(process.execPath, [join(root, "src/cli/main.ts"), ...words, "--json"], {
    cwd: scratch,
    encoding: "utf8",
    timeout: 20_000,
    env: { HOME: scratch },
  });
}

describe("error codes", () => {
  test("keep their names, numbers, blame and retry", () => {
    const promised = Object.entries(codes).map(([code, facts]) => {
      const { blame, retry, http, exit } = facts;
      return { code, blame, retry, http, exit };
    });
    matchesGolden(
      "error-codes",
      promised.sort((a, b) => (a.code < b.code ? -1 : 1)),
    );
  });

  test("end in distinct exit codes, save the two of the command line", () => {
    const exits = Object.entries(codes).map(([code, facts]) => [facts.exit, code] as const);
    const shared = [...Map.groupBy(exits, ([exit]) => exit).values()].filter((of) => of.length > 1);
    assert.deepEqual(
      shared.map((of) => of.map(([, code]) => code)),
      [["config_invalid", "usage_invalid"]],
    );
    for (const [exit, code] of exits) assert.ok(exit > 0 && exit < 128, code);
  });
});

describe("CLI JSON", () => {
  for (const words of [["--version"], ["--help"], ["config", "show"], ["config", "check"]]) {
    test(`relight ${words.join(" ")} keeps its shape`, () => {
      const ended = relight(...words);
      assert.equal(ended.status, 0, ended.stderr);
      const name = words.join("-").replace(/^-+/, "");
      matchesGolden(`cli-${name}`, shapeOf(JSON.parse(ended.stdout)));
    });
  }

  test("relight doctor keeps its shape and its checks", () => {
    const { stdout } = relight("doctor", "--coordinator-address=127.0.0.1:1");
    const { checks, ...rest } = JSON.parse(stdout);
    const names = checks.map((one: { check: string }) => one.check);
    const fields = [...new Set(checks.flatMap(Object.keys))];
    matchesGolden("cli-doctor", { ...Object(shapeOf(rest)), checks: { names, fields } });
  });

  test("a failure keeps its shape", () => {
    const ended = relight("config", "check", "--agent-workers=none");
    assert.equal(ended.status, 2);
    matchesGolden("cli-failure", shapeOf(JSON.parse(ended.stderr)));
  });
});

describe("generated documentation", () => {
  for (const [path, text] of Object.entries(renderPages())) {
    test(`${path} says what its table says`, () => {
      assert.equal(readFileSync(join(root, path), "utf8"), text, "stale: npm run docs");
    });
  }
});
