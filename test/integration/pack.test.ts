// SPDX-License-Identifier: Apache-2.0
// The package as a user gets it: packed, installed globally into an empty prefix, run where the
// machine's own Node may be too old. One replica of it starts warm from another, so that the worker
// threads and files that the package names at run time are all there.

import assert from "node:assert/strict";
import { type ChildProcess, type SpawnSyncReturns, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, type TestContext, test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "relight-pack-"));
const command = join(scratch, "prefix/bin/relight");
const children: ChildProcess[] = [];
let whyNotInstalled: string | null = null;

/** Longest time for one npm command, in milliseconds. */
const npmMsMax = 120_000;
/** Longest wait for a line of a child process, in milliseconds. */
const lineMsMax = 20_000;
/** What npm says when its cache lacks a package and no registry answers. */
const isOffline = /ENOTCACHED|ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|ENETUNREACH/;

function npm(...words: string[]): SpawnSyncReturns<string> {
  const options = { cwd: root, encoding: "utf8", timeout: npmMsMax, maxBuffer: 1 << 26 } as const;
  return spawnSync("npm", [...words, "--no-audit", "--no-fund"], options);
}

function installGlobally(tarball: string): SpawnSyncReturns<string> {
  const prefix = join(scratch, "prefix");
  const install = (mode: string) => npm("install", "-g", "--prefix", prefix, mode, tarball);
  // The cache that `npm ci` filled is enough on most machines; the registry is only asked after it.
  const offline = install("--offline");
  return offline.status === 0 ? offline : install("--prefer-offline");
}

/** A plain PATH: whatever Node this machine has of its own, if any. */
function environmentOf(home: string): NodeJS.ProcessEnv {
  return { PATH: "/usr/local/bin:/usr/bin:/bin", HOME: home };
}

function relight(...words: string[]): SpawnSyncReturns<string> {
  const env = environmentOf(scratch);
  return spawnSync(command, words, { cwd: scratch, encoding: "utf8", timeout: 20_000, env });
}

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

before(() => {
  const packed = npm("pack", "--json", "--pack-destination", scratch);
  assert.equal(packed.status, 0, packed.stdout + packed.stderr);
  const installed = installGlobally(join(scratch, tarballIn(packed.stdout).filename));
  if (installed.status === 0) return;
  assert.match(installed.stderr, isOffline);
  whyNotInstalled = "npm's cache lacks a package and no registry answers";
});

after(() => {
  for (const child of children) child.kill("SIGKILL");
  rmSync(scratch, { recursive: true });
});

/** Skips where npm could not install; true when it did. */
function canInstall(context: TestContext): boolean {
  if (whyNotInstalled !== null) context.skip(whyNotInstalled);
  return whyNotInstalled === null;
}

describe("npm pack and npm install -g", () => {
  test("give a relight that reads its configuration and fails with its codes", (context) => {
    if (!canInstall(context)) return;
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

  test("give a relight whose replica starts warm from another one", async (context) => {
    if (!canInstall(context)) return;
    const coordinator = start(
      "c",
      "coordinator",
      "--listen=127.0.0.1:0",
      "--http-listen=127.0.0.1:0",
      "--json",
    );
    const { grpc } = JSON.parse(await lineOf(coordinator, "stdout", /grpc/));
    const cold = await startReplica("a", grpc);
    assert.match(await lineOf(cold, "stdout", /engine/), /^engine cold$/);
    await lineOf(cold, "stderr", /publish/);
    const warm = await startReplica("b", grpc);
    assert.match(await lineOf(warm, "stdout", /engine/), /^engine warm$/);
    for (const child of [warm, cold]) assert.equal(await terminated(child), 43);
    assert.equal(await terminated(coordinator), 0);
  });

  test("ship what runs and nothing that does not", (context) => {
    const listed = npm("pack", "--dry-run", "--json", "--ignore-scripts");
    assert.equal(listed.status, 0, listed.stderr);
    const paths = tarballIn(listed.stdout).files.map((file) => file.path);
    for (const path of ["bin/relight", "LICENSE", "README.md", "dist/index.js"]) {
      assert.ok(paths.includes(path), path);
    }
    const stray = paths.filter((path) => /\.test\.|^(src|test|tools|bench)\/|\.pyc$/.test(path));
    assert.deepEqual(stray, []);
    context.diagnostic(`${paths.length} files in the package`);
  });
});

/** "Compiles" one file into its cache unless it is there, tells so, then is healthy until SIGTERM. */
const engine = `
  import { existsSync, mkdirSync, writeFileSync } from "node:fs";
  import { createServer } from "node:http";
  const [directory, port] = process.argv.slice(2);
  const file = directory + "/kernel.bin";
  process.on("SIGTERM", () => process.exit(43));
  setTimeout(() => process.exit(1), 60_000);
  console.log("engine", existsSync(file) ? "warm" : "cold");
  mkdirSync(directory, { recursive: true });
  if (!existsSync(file)) writeFileSync(file, "compiled");
  createServer((request, response) => response.end("ok")).listen(Number(port), "127.0.0.1");
`;

async function startReplica(name: string, coordinator: string): Promise<ChildProcess> {
  const home = join(scratch, name);
  const script = join(scratch, "engine.mjs");
  writeFileSync(script, engine);
  const port = await freePort();
  const cache = join(home, "cache");
  const flags = [
    `--coordinator-address=${coordinator}`,
    `--node-id=${name}`,
    `--cache=jit=${cache}`,
    "--identity=engine=pack-test",
    // One owner's replicas on one machine share a key, whatever their homes.
    `--trust-dir=${join(scratch, "trust")}`,
    `--health-url=http://127.0.0.1:${port}/health`,
    "--settle=100ms",
  ];
  return start(name, "run", ...flags, "--", process.execPath, script, cache, String(port));
}

function start(name: string, ...words: string[]): ChildProcess {
  const home = join(scratch, name);
  mkdirSync(home, { recursive: true });
  const env = environmentOf(home);
  const child = spawn(command, words, { cwd: home, env, stdio: ["ignore", "pipe", "pipe"] });
  children.push(child);
  return child;
}

/** The next line that matches. Lines are read as they come, so each stream is asked in order. */
async function lineOf(
  child: ChildProcess,
  name: "stdout" | "stderr",
  want: RegExp,
): Promise<string> {
  const stream = child[name];
  assert.ok(stream !== null);
  const seen: string[] = [];
  const deadline = AbortSignal.timeout(lineMsMax);
  const lines = createInterface({ input: stream, signal: deadline });
  for await (const line of lines) {
    seen.push(line);
    if (want.test(line)) return line;
  }
  throw new assert.AssertionError({ message: `no line matches ${want} in:\n${seen.join("\n")}` });
}

async function terminated(child: ChildProcess): Promise<number | null> {
  const exited = once(child, "exit", { signal: AbortSignal.timeout(lineMsMax) });
  child.kill("SIGTERM");
  const [code] = await exited;
  return code;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  assert.ok(address !== null && typeof address === "object");
  return address.port;
}
