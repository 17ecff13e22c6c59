// SPDX-License-Identifier: Apache-2.0
// What strangers and misbehaving members cost behind TLS, against processes and servers with their real
// limits: they are hung up on, and members are served meanwhile.

import assert from "node:assert/strict";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import { describe, test } from "node:test";
import tls from "node:tls";
import { connectCoordinator } from "../../src/agent/coordinator-client.ts";
import { bindHttp, closeHttp, httpLimits, httpServer } from "../../src/coordinator/http.ts";
import { startCoordinator as openCoordinator } from "../../src/coordinator/main.ts";
import { startHttpFetcher } from "../../src/transport/http-fetcher.ts";
import { startHttpServer } from "../../src/transport/http-server.ts";
import { writeCertificatePem } from "../../src/trust/certificate.ts";
import { secureContextOptions } from "../../src/trust/tls.ts";
import { coordinatorUri, type TlsMaterial, tlsIdentity } from "../../src/trust/tls-material.ts";
import { fleetFixture } from "../support/fleet.ts";
import { type RelightProcess, relight } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";
import { makeTree, offerOf } from "../support/tree.ts";
import { liveFleet } from "../support/trust.ts";

const within = () => AbortSignal.timeout(15_000);
const host = "127.0.0.1";

/** As an operator's own authority would put them there. */
function putFiles(folder: TemporaryFolder, { key, chain, authorities }: TlsMaterial): string[] {
  const pem = (list: readonly Uint8Array[]) =>
    list.map((der) => writeCertificatePem(Buffer.from(der))).join("");
  const files = { certificate: pem(chain), key: Buffer.from(key), authority: pem(authorities) };
  return Object.entries(files).map(([name, content]) => {
    const file = folder.path(`${name}.pem`);
    fs.writeFileSync(file, content, { mode: 0o600 });
    return `--trust-${name}=${file}`;
  });
}

async function startCoordinator(
  folder: TemporaryFolder,
  flags: readonly string[],
): Promise<RelightProcess & { address: string }> {
  const coordinator = relight([
    "coordinator",
    "--listen=127.0.0.1:0",
    "--http-listen=127.0.0.1:0",
    `--state-dir=${folder.path("state")}`,
    ...flags,
  ]);
  const [, address = ""] = await coordinator.printed(/gRPC on (\S+) behind TLS/);
  return { ...coordinator, address };
}

function openSockets(count: number, port: number): Disposable & { ended: () => number } {
  let ended = 0;
  const sockets = Array.from({ length: count }, () => {
    const socket = net.connect(port, host);
    // Reads, or it would not see that it was hung up on; and begins a handshake that it never goes on
    // with, or a connection that overflowed the listen queue would be open here and unknown there.
    socket.resume();
    socket.once("connect", () => socket.write(Buffer.from([0x16])));
    socket.on("error", () => {});
    socket.on("close", () => {
      ended++;
    });
    return socket;
  });
  return {
    ended: () => ended,
    [Symbol.dispose]: () => {
      for (const socket of sockets) socket.destroy();
    },
  };
}

/** Generous: of connections beyond the listen queue the kernel repeats the handshake for a quarter of a minute. */
async function until(isSo: () => boolean, what: string): Promise<void> {
  for (const ends = Date.now() + 90_000; !isSo(); ) {
    assert.ok(Date.now() < ends, what);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

describe("strangers at the coordinator", () => {
  test("10,000 half-open connections are ended, memory stays, and a member is served", async () => {
    using folder = temporaryFolder();
    const fleet = liveFleet();
    const flags = putFiles(folder, fleet.member(coordinatorUri("fleet")));
    await using coordinator = await startCoordinator(folder, flags);
    const { address } = coordinator;
    const member = fleet.member("spiffe://fleet/reader/node");
    await using client = connectCoordinator({ address, timeoutMs: 10_000, tls: () => member });
    await client.listBoots(1, within());
    const before = residentBytes(coordinator.child.pid ?? 0);
    using flood = openSockets(10_000, Number(address.split(":").at(-1)));
    // Most are over the limit of a second, the rest do not shake hands within their five seconds.
    await until(() => flood.ended() === 10_000, "every stranger is hung up on");
    await client.listBoots(1, within());
    const grown = residentBytes(coordinator.child.pid ?? 0) - before;
    assert.ok(grown < 150 * 1024 * 1024, `${grown} bytes more`);
  });

  test("a stranger cannot hold a session's stream open", async () => {
    await using fixture = await fleetFixture();
    const { fleet, coordinator } = fixture;
    const foreign = liveFleet().member("spiffe://fleet/author/node");
    const believing = { ...foreign, authorities: [fleet.authority.certificate.der] };
    const client = fixture.connect(believing);
    await assert.rejects(client.openSession({ nodeId: "a", agentEndpoint: "" }, within()), {
      code: "unauthenticated",
    });
    assert.ok(coordinator.grpcAddress);
  });
});

describe("at the coordinator's HTTP face", () => {
  const face = {
    // Answers nothing here: those are other paths.
    ep: { answer: async () => null },
    probe: async () => {},
    metrics: { contentType: "text/plain", text: async () => "" },
    budgetMs: 1_000,
  };
  async function open(changes: Partial<Record<keyof typeof httpLimits, number>>) {
    const server = httpServer(face, { ...httpLimits, ...changes });
    const port = await bindHttp(server, { host, port: 0 });
    return { port, [Symbol.asyncDispose]: () => closeHttp(server) };
  }
  const answer = async (socket: net.Socket): Promise<string> => {
    let text = "";
    socket.on("data", (bytes) => {
      text += bytes.toString("latin1");
    });
    socket.on("error", () => {});
    await new Promise((resolve) => socket.on("close", resolve));
    return text.split("\r\n")[0] ?? "";
  };

  test("expert groups are changed from this machine only: the face speaks no TLS", async (context) => {
    const outside = Object.values(os.networkInterfaces())
      .flatMap((list) => list ?? [])
      .find(({ family, internal }) => family === "IPv4" && !internal);
    if (outside === undefined) return context.skip("this machine has no address beyond loopback");
    const grpc = { host, port: 0 };
    const http = { host: "0.0.0.0", port: 0 };
    await using coordinator = await openCoordinator({ grpc, http, store: { kind: "memory" } });
    const port = new URL(coordinator.httpUrl ?? "").port;
    const ask = async (from: string, path: string) =>
      (await fetch(`http://${from}:${port}${path}`, { signal: within() })).status;
    assert.equal(await ask(outside.address, "/healthz"), 200);
    assert.equal(await ask(outside.address, "/v1/ep"), 401);
    assert.equal(await ask(host, "/v1/ep"), 200);
  });

  test("a head that never ends, or is too long, is answered and hung up on", async () => {
    await using slow = await open({ headMsMax: 200 });
    const dripping = net.connect(slow.port, host);
    dripping.write("GET /metrics HTTP/1.1\r\nX: ");
    assert.match(await answer(dripping), /^HTTP\/1\.1 408 /);
    await using small = await open({ headBytesMax: 1_024 });
    const long = net.connect(small.port, host);
    long.write(`GET /metrics HTTP/1.1\r\nX: ${"x".repeat(4_096)}\r\n\r\n`);
    assert.match(await answer(long), /^HTTP\/1\.1 431 /);
  });

  test("a connection beyond the limit is closed unheard, and the others are answered", async () => {
    await using limited = await open({ connectionsMax: 1 });
    const first = net.connect(limited.port, host);
    await new Promise((resolve) => first.on("connect", resolve));
    const second = net.connect(limited.port, host);
    assert.equal(await answer(second), "");
    first.write("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert.match(await answer(first), /^HTTP\/1\.1 200 /);
  });
});

describe("on the byte path", () => {
  test("a member that asks for nothing more is hung up on after its idle time", async () => {
    const fleet = liveFleet();
    await using server = await startHttpServer({
      host,
      port: 0,
      threads: 1,
      limits: { idleMsMax: 200 },
      events: { fileChanged: () => {} },
      tls: fleet.member("spiffe://fleet/author/source"),
    });
    const socket = tls.connect({
      host,
      port: Number(new URL(server.endpoint).port),
      ...secureContextOptions(tlsIdentity(fleet.member("spiffe://fleet/mirror/target"))),
      checkServerIdentity: () => undefined,
    });
    socket.on("error", () => {});
    let text = "";
    socket.on("data", (bytes) => {
      text += bytes.toString("latin1");
    });
    socket.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    await new Promise((resolve) => socket.on("close", resolve));
    assert.match(text, /^HTTP\/1\.1 200 OK/);
  });

  test("a member that never ends its request's head is hung up on, and others are served", async () => {
    const fleet = liveFleet();
    const uri = "spiffe://fleet/author/source";
    const member = fleet.member("spiffe://fleet/mirror/target");
    await using server = await startHttpServer({
      host,
      port: 0,
      threads: 1,
      limits: { headMsMax: 500 },
      events: { fileChanged: () => {} },
      tls: fleet.member(uri),
    });
    const port = Number(new URL(server.endpoint).port);
    const slow = tls.connect({
      host,
      port,
      ...secureContextOptions(tlsIdentity(member)),
      checkServerIdentity: () => undefined,
    });
    slow.on("error", () => {});
    let isClosed = false;
    slow.on("close", () => {
      isClosed = true;
    });
    slow.write("GET /healthz HTTP/1.1\r\nX-Slow: ");
    const drip = setInterval(() => slow.write("x"), 50);
    using tree = makeTree({ kernel: 1_000 });
    await server.offer(offerOf(tree));
    await using fetcher = startHttpFetcher({ threads: 1, tls: member });
    const at = { endpoint: `${server.endpoint}#${uri}`, artifactId: tree.manifest.artifactId };
    const asked = await fetcher.manifest(at, { bytesMax: 100_000 }, within());
    assert.deepEqual(asked, tree.manifest.bytes);
    try {
      await until(() => isClosed, "the slow one is hung up on");
    } finally {
      clearInterval(drip);
      slow.destroy();
    }
  });
});

describe("files of another authority", () => {
  test("are taken up when they rotate, one after the other as rotation writes them", async () => {
    using folder = temporaryFolder();
    const [old, next] = [liveFleet(), liveFleet()];
    const uri = coordinatorUri("fleet");
    await using coordinator = await startCoordinator(folder, putFiles(folder, old.member(uri)));
    const { address } = coordinator;
    const late = next.member("spiffe://fleet/reader/node");
    const tell = async () => {
      await using client = connectCoordinator({ address, timeoutMs: 3_000, tls: () => late });
      return await client.listBoots(1, within()).then(
        () => true,
        () => false,
      );
    };
    assert.equal(await tell(), false, "the coordinator is of the old authority");
    const { key, ...rest } = next.member(uri);
    const keyFile = folder.path("key.pem");
    const oldKey = fs.readFileSync(keyFile);
    putFiles(folder, { key: oldKey, ...rest });
    // The key comes late: until then nothing changes and nothing ends.
    await coordinator.printed(/does not belong to the private key/);
    fs.writeFileSync(keyFile, key);
    for (const ends = Date.now() + 20_000; !(await tell()); )
      assert.ok(Date.now() < ends, "the new files are taken up");
  });

  test("a key that everybody may read is refused, and so are two of three files", async () => {
    using folder = temporaryFolder();
    const flags = putFiles(folder, liveFleet().member(coordinatorUri("fleet")));
    await using partial = relight(["coordinator", ...flags.slice(0, 2), "--listen=127.0.0.1:0"]);
    assert.equal(await partial.exited, 2);
    fs.chmodSync(folder.path("key.pem"), 0o604);
    await using exposed = relight(["coordinator", ...flags, "--listen=127.0.0.1:0"]);
    assert.equal(await exposed.exited, 78);
    await exposed.drained;
    assert.match(exposed.output(), /key_unsafe/);
  });
});

function residentBytes(pid: number): number {
  const [, kib = "0"] = /VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kib) * 1024;
}
