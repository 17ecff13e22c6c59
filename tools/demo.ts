// SPDX-License-Identifier: Apache-2.0
// `npm run demo`: the main job on this machine, with real processes. A coordinator, replica A which
// compiles everything, and replica B in another home which takes A's kernels and compiles nothing.
// Prints both times, B's ledger, and last one line of JSON.

import { type ChildProcess, spawn } from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { findBoot } from "../src/agent/boot-store.ts";
import type { BootRecord } from "../src/agent/ledger.ts";

const repository = fileURLToPath(new URL("..", import.meta.url));
const relight = path.join(repository, "src/cli/main.ts");
const engine = path.join(repository, "examples/jit-engine/engine.py");
const waitMsMax = 120_000;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "relight-demo-"));
const processes: ChildProcess[] = [];
const onSignal = () => process.exit(130);
process.once("SIGINT", onSignal).once("SIGTERM", onSignal);
process.once("exit", () => {
  for (const child of processes) child.kill("SIGKILL");
  fs.rmSync(folder, { recursive: true, force: true });
});

const [grpc = 0, http = 0, portA = 0, portB = 0] = await freePorts(4);
const coordinator = `127.0.0.1:${grpc}`;

say("coordinator", `starts on ${coordinator}, its store in ${folder}`);
start("coordinator", [
  "coordinator",
  `--listen=${coordinator}`,
  `--http-listen=127.0.0.1:${http}`,
  `--store-dir=${path.join(folder, "store")}`,
]);
await untilListening(grpc);

say("replica A", "starts cold: nobody has its kernels, so it compiles them");
await startReplica("a", portA);
say("replica B", "starts in another home directory");
await startReplica("b", portB);

const [a, b] = [recordOf("a"), recordOf("b")];
const healthA = await health(portA);
const healthB = await health(portB);
await runToEnd(["boot", "show", `--state-dir=${stateOf("b")}`]);
await runToEnd(["boot", "why", `--state-dir=${stateOf("b")}`]);

const coldSeconds = seconds(a.healthyMs);
const warmSeconds = seconds(b.healthyMs);
const cache = b.caches[0];
if (cache === undefined || healthA.checksum !== healthB.checksum) {
  throw new Error("Replica B computes something else than replica A");
}
console.log(
  `\nA healthy after ${coldSeconds} s, B after ${warmSeconds} s; both compute ${healthB.checksum}.`,
);
console.log(
  JSON.stringify({
    cold_s: coldSeconds,
    warm_s: warmSeconds,
    speedup: Number((coldSeconds / warmSeconds).toFixed(1)),
    files: cache.fetched,
    bytes: cache.fetchedBytes,
    hits: cache.hits?.hit ?? null,
    compiled_anyway: healthB.compiled,
  }),
);
process.exit(0);

async function startReplica(name: string, port: number): Promise<void> {
  const home = path.join(folder, name);
  const cacheFolder = path.join(home, "cache");
  fs.mkdirSync(home);
  const child = start(
    `replica ${name.toUpperCase()}`,
    [
      "run",
      `--coordinator-address=${coordinator}`,
      // Both are one owner's: they share a key, and each trusts exactly that.
      `--trust-dir=${path.join(folder, "trust")}`,
      `--node-id=${name}`,
      "--model=demo",
      `--cache=jit=${cacheFolder}`,
      `--health-url=http://127.0.0.1:${port}/health`,
      "--settle=1s",
      "--delta-interval=1s",
      "--",
      "python3",
      engine,
      `--port=${port}`,
      `--cache=${cacheFolder}`,
    ],
    { HOME: home, XDG_STATE_HOME: path.join(home, "state") },
  );
  // Its record says when it was healthy and what it offers; the next replica needs the offer.
  await until(`replica ${name.toUpperCase()} to publish`, () => {
    if (child.exitCode !== null)
      throw new Error(`Replica ${name} ended with code ${child.exitCode}`);
    try {
      return recordOf(name).caches[0]?.published != null;
    } catch {
      // Not written yet.
      return false;
    }
  });
}

function start(
  name: string,
  args: readonly string[],
  env: Record<string, string> = {},
): ChildProcess {
  const child = spawn(process.execPath, [relight, ...args], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  processes.push(child);
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding("utf8").on("data", (text: string) => {
      for (const line of text.split("\n").filter((one) => one !== "")) say(name, line);
    });
  }
  return child;
}

async function runToEnd(args: readonly string[]): Promise<void> {
  console.log(`\n$ relight ${args[0]} ${args[1]}`);
  const child = spawn(process.execPath, [relight, ...args], { stdio: "inherit" });
  await new Promise((resolve) => child.once("exit", resolve));
}

function recordOf(name: string): BootRecord {
  return findBoot(stateOf(name), undefined);
}

function stateOf(name: string): string {
  return path.join(folder, name, "state", "relight");
}

async function health(port: number): Promise<{ compiled: number; checksum: string }> {
  const response = await fetch(`http://127.0.0.1:${port}/health`);
  return (await response.json()) as { compiled: number; checksum: string };
}

async function untilListening(port: number): Promise<void> {
  await until(`port ${port}`, async () => {
    const socket = net.connect(port, "127.0.0.1");
    const isOpen = await new Promise<boolean>((resolve) => {
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
    });
    socket.destroy();
    return isOpen;
  });
}

async function until(what: string, isDone: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + waitMsMax;
  while (!(await isDone())) {
    if (performance.now() > deadline) throw new Error(`Waited ${waitMsMax / 1_000} s for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function freePorts(wanted: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: wanted }, async () => {
      const server = net.createServer();
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as net.AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

function seconds(ms: number | null): number {
  if (ms === null) throw new Error("A replica never became healthy");
  return Number((ms / 1_000).toFixed(2));
}

function say(who: string, text: string): void {
  console.log(`${who.padEnd(12)} ${text}`);
}
