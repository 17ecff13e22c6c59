// SPDX-License-Identifier: Apache-2.0
// bin/relight: which Node it takes, from where, and that it becomes that process.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

const launcher = fileURLToPath(new URL("../../bin/relight", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "relight-launcher-"));
const packaged = `node-linux-${process.arch}/bin/node`;
after(() => rmSync(scratch, { recursive: true }));

function write(path: string, content: string): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
  chmodSync(path, 0o755);
  return path;
}

/** A package with a main that tells who runs it. */
function install(at: string, main = 'console.log("ran", process.pid, process.execPath);'): string {
  const bin = join(at, "bin/relight");
  mkdirSync(dirname(bin), { recursive: true });
  copyFileSync(launcher, bin);
  write(join(at, "package.json"), '{ "type": "module" }');
  write(join(at, "dist/cli/main.js"), main);
  return bin;
}

function linkNode(at: string): void {
  mkdirSync(dirname(at), { recursive: true });
  symlinkSync(process.execPath, at);
}

/** A PATH with the tools that the script uses and, when given, a `node` that tells `version`. */
function pathWith(name: string, version?: string): string {
  const directory = join(scratch, name);
  if (version !== undefined) write(join(directory, "node"), `#!/bin/sh\necho ${version}\n`);
  else mkdirSync(directory, { recursive: true });
  for (const tool of ["sh", "readlink", "dirname", "uname"]) {
    const from = ["/usr/bin", "/bin"].map((one) => join(one, tool));
    const found = from.find((one) => spawnSync("test", ["-x", one]).status === 0);
    assert.ok(found !== undefined, tool);
    symlinkSync(found, join(directory, tool));
  }
  return directory;
}

describe("bin/relight", () => {
  const bare = pathWith("bare");

  test("finds the Node inside its package, called through two links", () => {
    const bin = install(join(scratch, "inside/lib/relight"));
    linkNode(join(scratch, "inside/lib/relight/node_modules", packaged));
    mkdirSync(join(scratch, "inside/bin"));
    symlinkSync("../lib/relight/bin/relight", join(scratch, "inside/bin/relight"));
    symlinkSync(join(scratch, "inside/bin/relight"), join(scratch, "inside/again"));
    assert.ok(bin.endsWith("bin/relight"));
    const ended = spawnSync(join(scratch, "inside/again"), {
      env: { PATH: bare },
      encoding: "utf8",
    });
    assert.match(ended.stdout, /^ran/, ended.stderr);
  });

  test("finds the Node in a node_modules above its package, in a path with spaces", () => {
    const bin = install(join(scratch, "a b/node_modules/relight"));
    linkNode(join(scratch, "a b/node_modules", packaged));
    const ended = spawnSync(bin, { env: { PATH: bare }, encoding: "utf8" });
    assert.match(ended.stdout, /^ran/, ended.stderr);
  });

  test("takes the Node on PATH when none came with the package", () => {
    const bin = install(join(scratch, "none/relight"));
    const path = join(scratch, "real");
    linkNode(join(path, "node"));
    const ended = spawnSync(bin, { env: { PATH: `${path}:${bare}` }, encoding: "utf8" });
    assert.match(ended.stdout, /^ran/, ended.stderr);
  });

  for (const [what, version] of [
    ["an older Node", "v20.20.2"],
    ["something that is not Node", "hello"],
    ["no Node", undefined],
  ] as const) {
    test(`says what to do and exits 78 with ${what} on PATH`, () => {
      const bin = install(join(scratch, `old-${version}/relight`));
      const path = pathWith(`path-${version}`, version);
      const ended = spawnSync(bin, { env: { PATH: path }, encoding: "utf8" });
      assert.equal(ended.status, 78);
      assert.match(ended.stderr, /Cannot start relight: there is no Node 24/);
    });
  }

  test("becomes the process: same pid, signals arrive, exit code and arguments pass", async () => {
    const main = `
      process.on("SIGTERM", () => process.exit(43));
      setTimeout(() => process.exit(1), 20_000);
      console.log(process.pid, JSON.stringify(process.argv.slice(2)));`;
    const bin = install(join(scratch, "signal/relight"), main);
    linkNode(join(scratch, "signal/relight/node_modules", packaged));
    const child = spawn(bin, ["a b", "", "*"], {
      env: { PATH: bare },
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [line] = await once(child.stdout, "data");
    assert.equal(String(line).trim(), `${child.pid} ["a b","","*"]`);
    child.kill("SIGTERM");
    const [code] = await once(child, "exit");
    assert.equal(code, 43);
  });
});
