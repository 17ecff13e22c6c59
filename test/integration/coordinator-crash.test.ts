// SPDX-License-Identifier: Apache-2.0
// A real coordinator process that is killed: what was acknowledged is there when it comes back.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { connectCoordinator, type Identity } from "../../src/agent/coordinator-client.ts";
import { publication } from "../support/coordinator.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const identity: Identity = { modelName: "org/model", mxSourceType: 4 };
const within = (): AbortSignal => AbortSignal.timeout(30_000);

test("an acknowledged publish survives kill -9 of the coordinator, and no client publishes again", async () => {
  using folder = temporaryFolder();
  await using first = await startProcess(folder.path("store"));
  await using client = connectCoordinator({ address: first.grpc, timeoutMs: 5_000 });
  const session = await client.openSession({ nodeId: "n", agentEndpoint: "" }, within());
  const workers = Array.from({ length: 50 }, (_, index) => `worker-${index}`);
  const publishing = workers.map((workerId) =>
    client.publish(publication({ sessionId: session.id, workerId }), within()),
  );
  await Promise.all(publishing);
  const boot = { bootId: "b", nodeId: "n", model: "m", startedAtMs: 1, readyMs: 2 };
  await client.reportBoot({ ...boot, recordJson: Buffer.from("{}") }, within());
  await first.kill();

  await using _second = await startProcess(folder.path("store"), first.grpc);
  await using reader = connectCoordinator({ address: first.grpc, timeoutMs: 5_000 });
  const refs = await reader.listSources({ identity, statusFilter: 2 }, within());
  assert.deepEqual(refs.map(({ workerId }) => workerId).sort(), [...workers].sort());
  const [found] = await reader.find([identity], { limit: 100 }, within());
  assert.equal(found?.length, 50);
  assert.deepEqual(
    (await reader.listBoots(1, within())).map(({ bootId }) => bootId),
    ["b"],
  );
});

test("a coordinator killed again and again while it is written to keeps every acknowledged record", async () => {
  using folder = temporaryFolder();
  const acknowledged: string[] = [];
  let grpc: string | undefined;
  for (let round = 0; round < 3; round++) {
    await using process = await startProcess(folder.path("store"), grpc);
    grpc = process.grpc;
    await using client = connectCoordinator({ address: grpc, timeoutMs: 5_000 });
    const session = await client.openSession({ nodeId: "n", agentEndpoint: "" }, within());
    const writing = Array.from({ length: 200 }, async (_, index) => {
      const workerId = `worker-${round}-${index}`;
      await client.publish(publication({ sessionId: session.id, workerId }), within());
      acknowledged.push(workerId);
      if (index === 60) await process.kill();
    });
    await Promise.allSettled(writing);
  }
  assert.ok(acknowledged.length >= 3, `${acknowledged.length} acknowledged`);
  await using _last = await startProcess(folder.path("store"), grpc);
  await using reader = connectCoordinator({ address: grpc ?? "", timeoutMs: 5_000 });
  const listed = new Set(
    (await reader.listSources({ identity }, within())).map(({ workerId }) => workerId),
  );
  assert.deepEqual(
    acknowledged.filter((workerId) => !listed.has(workerId)),
    [],
  );
});

test("/healthz, /readyz and /metrics answer over HTTP, and other requests are refused", async () => {
  using folder = temporaryFolder();
  await using process = await startProcess(folder.path("store"));
  await using client = connectCoordinator({ address: process.grpc, timeoutMs: 5_000 });
  await client.find([identity], {}, within());
  const get = (path: string, method = "GET"): Promise<Response> =>
    fetch(`${process.http}${path}`, { method, signal: within() });
  assert.deepEqual(await (await get("/healthz")).json(), { status: "ok" });
  assert.deepEqual(await (await get("/readyz")).json(), { status: "ready" });
  const metrics = await get("/metrics");
  assert.match(metrics.headers.get("content-type") ?? "", /^text\/plain/);
  const text = await metrics.text();
  assert.match(text, /^relight_coordinator_calls_total\{method="find",code="ok"\} 1$/m);
  assert.match(text, /^relight_coordinator_sources 0$/m);
  assert.equal((await get("/")).status, 404);
  assert.equal((await get("/healthz", "POST")).status, 405);
});

test("SIGTERM ends the process with 0, and the port is free again", async () => {
  using folder = temporaryFolder();
  await using first = await startProcess(folder.path("store"));
  first.child.kill("SIGTERM");
  const [code] = await once(first.child, "exit", { signal: within() });
  assert.equal(code, 0);
  await using second = await startProcess(folder.path("store"), first.grpc);
  assert.equal(second.grpc, first.grpc);
});

interface Running extends AsyncDisposable {
  readonly child: ChildProcess;
  readonly grpc: string;
  readonly http: string;
  kill(): Promise<void>;
}

async function startProcess(directory: string, grpc = "127.0.0.1:0"): Promise<Running> {
  const program = join(import.meta.dirname, "../support/coordinator-process.ts");
  const port = grpc.split(":")[1] ?? "0";
  const child = spawn(process.execPath, [program, directory, port], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const exited = once(child, "exit");
  const kill = async (): Promise<void> => {
    child.kill("SIGKILL");
    await exited;
  };
  const lines = createInterface({ input: child.stdout });
  const [line] = await Promise.race([
    once(lines, "line", { signal: within() }),
    exited.then(([code]) => Promise.reject(new Error(`the coordinator ended with ${code}`))),
  ]);
  const addresses: { readonly grpc: string; readonly http: string } = JSON.parse(String(line));
  return { child, ...addresses, kill, [Symbol.asyncDispose]: kill };
}
