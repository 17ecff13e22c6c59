// SPDX-License-Identifier: Apache-2.0
// `relight doctor` looks for itself: what it calls well was tried, and what is not well says what to do.

import assert from "node:assert/strict";
import net from "node:net";
import { describe, test } from "node:test";
import { freePort, relight, relightJson, startTestCoordinator } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

interface Check {
  readonly check: string;
  readonly status: string;
  readonly detail: string;
  readonly code: string | null;
  readonly next: string | null;
}

async function examine(
  folder: TemporaryFolder,
  flags: readonly string[],
  env: Record<string, string> = {},
): Promise<{ code: number | string; of: (check: string) => Check }> {
  const { code, value, output } = await relightJson<{ checks: Check[] }>(
    ["doctor", `--state-dir=${folder.path("state")}`, ...flags],
    env,
  );
  return {
    code,
    of: (check) => {
      const found = value.checks.find((one) => one.check === check);
      assert.ok(found, `${check}: ${output}`);
      return found;
    },
  };
}

describe("relight doctor", () => {
  test("asks the coordinator by gRPC and compares clocks with it", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const { code, of } = await examine(folder, [`--coordinator-address=${coordinator.address}`]);
    assert.equal(code, 0);
    assert.match(of("coordinator").detail, /answers in plaintext and serves/);
    assert.equal(of("clock").status, "ok", of("clock").detail);
  });

  test("is not satisfied by a port that merely accepts connections", async () => {
    using folder = temporaryFolder();
    const server = net.createServer((socket) => socket.end("HTTP/1.1 200 OK\r\n\r\n"));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as net.AddressInfo;
    const { code, of } = await examine(folder, [`--coordinator-address=127.0.0.1:${port}`]);
    server.close();
    assert.equal(of("coordinator").status, "fail");
    assert.notEqual(code, 0);
  });

  test("names a cache's place that is taken, an engine's Python that is none, and a compiler that lacks", async () => {
    using folder = temporaryFolder();
    folder.write("taken", "a file");
    const { of } = await examine(
      folder,
      [`--cache=jit=${folder.path("taken/cache")}`, "--python=/nonexistent/python3"],
      // A PATH without a compiler; Node itself is started by its full name.
      { PATH: folder.path("empty"), CC: "" },
    );
    assert.equal(of("caches").code, "target_obstructed");
    assert.equal(of("python").code, "probe_failed");
    assert.match(of("python").next ?? "", /--python/);
    assert.equal(of("compilers").status, "warn");
    assert.equal(of("coordinator").code, "coordinator_unreachable");
    assert.doesNotMatch(of("coordinator").detail, /Resolution note/);
  });

  test("shows a member's certificate, and asks over TLS; before it joined, uses up no token", async () => {
    using folder = temporaryFolder();
    const office = [`--state-dir=${folder.path("office")}`];
    const address = `127.0.0.1:${await freePort()}`;
    const made = await relightJson<{ token: string }>([
      "trust",
      "token",
      "--uses=1",
      `--coordinator-address=${address}`,
      ...office,
    ]);
    assert.equal(made.code, 0, made.output);
    await using coordinator = relight([
      "coordinator",
      `--listen=${address}`,
      "--http-listen=127.0.0.1:0",
      `--store-dir=${folder.path("store")}`,
      ...office,
    ]);
    await coordinator.printed(/gRPC on (\S+) behind TLS/);
    const join = [`--join=${made.value.token}`, `--coordinator-address=${address}`];
    const before = await examine(folder, join);
    assert.equal(before.of("certificate").status, "warn");
    assert.equal(before.of("coordinator").status, "unknown");
    const listed = await relightJson([
      "source",
      "list",
      `--state-dir=${folder.path("state")}`,
      ...join,
    ]);
    assert.equal(listed.code, 0, listed.output);
    const after = await examine(folder, [`--coordinator-address=${address}`]);
    assert.match(after.of("certificate").detail, /^spiffe:/);
    assert.match(after.of("coordinator").detail, /over TLS and serves/);
  });
});
