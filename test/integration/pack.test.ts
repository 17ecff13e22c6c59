// SPDX-License-Identifier: Apache-2.0
// The package as a user gets it: packed, installed globally into an empty prefix, run where the
// machine's own Node may be too old.

import assert from "node:assert/strict";
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "relight-pack-"));
after(() => rmSync(scratch, { recursive: true }));

/** Longest time for one npm command, in milliseconds. */
const npmMsMax = 120_000;
/** What npm says when its cache lacks a package and no registry answers. */
const isOffline = /ENOTCACHED|ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|ENETUNREACH/;

function npm(...words: string[]): SpawnSyncReturns<string> {
  const options = { cwd: root, encoding: "utf8", timeout: npmMsMax, maxBuffer: 1 << 26 } as const;
  return spawnSync("npm", [...words, "--no-audit", "--no-fund"], options);
}

function installGlobally(tarball: string): SpawnSyncReturns<string> {
  const install = (mode: string) =>
    npm("install", "-g", "--prefix", join(scratch, "prefix"), mode, tarball);
  // The cache that `npm ci` filled is enough on most machines; the registry is only asked after it.
  const offline = install("--offline");
  return offline.status === 0 ? offline : install("--prefer-offline");
}

function relight(...words: string[]): SpawnSyncReturns<string> {
  return spawnSync(join(scratch, "prefix/bin/relight"), words, {
    cwd: scratch,
    encoding: "utf8",
    timeout: 20_000,
    // A plain PATH: whatever Node this machine has of its own, if any.
    env: { PATH: "/usr/local/bin:/usr/bin:/bin", HOME: scratch },
  });
}

describe("npm pack and npm install -g", () => {
  test("give a relight that runs, reads its configuration and fails with its codes", (context) => {
    const packed = npm("pack", "--json", "--pack-destination", scratch);
    assert.equal(packed.status, 0, packed.stdout + packed.stderr);
    const tarball = tarballIn(packed.stdout);
    const installed = installGlobally(join(scratch, tarball.filename));
    if (installed.status !== 0 && isOffline.test(installed.stderr)) {
      context.skip("npm's cache lacks a package and no registry answers");
      return;
    }
    assert.equal(installed.status, 0, installed.stderr);

    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    assert.equal(relight("--version").stdout, `${version}\n`);
    const running = JSON.parse(relight("--version", "--json").stdout);
    assert.ok(Number.parseInt(running.node.slice(1), 10) >= 24, running.node);
    assert.match(relight("--help").stdout, /relight config check/);
    assert.equal(JSON.parse(relight("config", "check", "--json").stdout).ok, true);
    const wrong = relight("config", "check", "--agent-workers=none", "--json");
    assert.equal(wrong.status, 2);
    assert.equal(JSON.parse(wrong.stderr).error.code, "config_invalid");
  });

  test("ship what runs and nothing that does not", (context) => {
    const listed = npm("pack", "--dry-run", "--json", "--ignore-scripts");
    assert.equal(listed.status, 0, listed.stderr);
    const paths = tarballIn(listed.stdout).files.map((file) => file.path);
    for (const path of [
      "bin/relight",
      "LICENSE",
      "README.md",
      "dist/index.js",
      "dist/cli/main.js",
    ]) {
      assert.ok(paths.includes(path), path);
    }
    const stray = paths.filter((path) => /\.test\.|^(src|test|tools|bench)\/|\.pyc$/.test(path));
    assert.deepEqual(stray, []);
    context.diagnostic(`${paths.length} files in the package`);
  });
});

interface Tarball {
  readonly filename: string;
  readonly files: readonly { readonly path: string }[];
}

/** `npm pack --json` prints a list of one; what a prepack script printed may stand before it. */
function tarballIn(printed: string): Tarball {
  const parsed: Tarball[] = JSON.parse(printed.slice(printed.indexOf("[")));
  const [tarball] = parsed;
  assert.ok(tarball !== undefined, printed);
  return tarball;
}
