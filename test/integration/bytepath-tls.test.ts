// SPDX-License-Identifier: Apache-2.0
// The byte path behind mutual TLS 1.3: the transport's contract, and everybody who must not get in or
// be taken for a source.

import assert from "node:assert/strict";
import { createPublicKey } from "node:crypto";
import net from "node:net";
import { after, before, describe, test } from "node:test";
import tls from "node:tls";
import type { Code } from "../../src/errors.ts";
import { type HttpPieceFetcher, startHttpFetcher } from "../../src/transport/http-fetcher.ts";
import { type HttpPieceServer, startHttpServer } from "../../src/transport/http-server.ts";
import type { PieceServer, ServerLimits } from "../../src/transport/transport.ts";
import { keyIdOf } from "../../src/trust/keys.ts";
import { secureContextOptions } from "../../src/trust/tls.ts";
import { type TlsMaterial, tlsIdentity } from "../../src/trust/tls-material.ts";
import { transportContract, withCode } from "../contracts/transport.ts";
import { differences, makeFolder, makeTree, offerOf, stagingFor } from "../support/tree.ts";
import { day, hour, liveFleet } from "../support/trust.ts";

const sourceUri = "spiffe://fleet/author/source";
const targetUri = "spiffe://fleet/mirror/target";
const fleet = liveFleet();
const stranger = liveFleet();
const source = fleet.member(sourceUri);
const target = fleet.member(targetUri);
const events = { fileChanged: () => {} };
const host = "127.0.0.1";
const within = () => AbortSignal.timeout(20_000);
const bytesMax = 1_000_000;

transportContract("http behind TLS", {
  serve: async ({ events: told, readersMax }) => {
    const limits = readersMax === undefined ? {} : { limits: { readersMax } };
    const server = await startHttpServer({ host, port: 0, events: told, tls: source, ...limits });
    return named(server, sourceUri);
  },
  fetcher: () => startHttpFetcher({ tls: target }),
});

let server: HttpPieceServer;
let fetcher: HttpPieceFetcher;
before(async () => {
  server = await serve(source);
  fetcher = startHttpFetcher({ threads: 1, tls: target });
});
after(async () => {
  await fetcher[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

describe("a target refuses a source", () => {
  const cases: Record<string, TlsMaterial> = {
    "that is another member of the fleet": fleet.member("spiffe://fleet/author/other"),
    "with the right name under another authority": stranger.member(sourceUri),
    "whose certificate has ended": fleet.member(sourceUri, {
      notBefore: Date.now() - day,
      notAfter: Date.now() - hour,
    }),
    "whose certificate may not serve": fleet.member(sourceUri, { purposes: ["client_auth"] }),
    "with two names, one of them right": fleet.member("", {
      uris: [sourceUri, "spiffe://fleet/author/other"],
    }),
  };
  for (const [name, material] of Object.entries(cases)) {
    test(name, async () => {
      using tree = makeTree({ kernel: 100 });
      await using wrong = await serve(material);
      await wrong.offer(offerOf(tree));
      const at = {
        endpoint: `${wrong.endpoint}#${sourceUri}`,
        artifactId: tree.manifest.artifactId,
      };
      const asked = fetcher.manifest(at, { bytesMax }, within());
      await assert.rejects(asked, withCode("certificate_invalid"));
    });
  }

  test("that speaks plaintext beyond loopback, or TLS under no name", async () => {
    using tree = makeTree({ kernel: 1 });
    const { artifactId } = tree.manifest;
    const wanted: [string, Code][] = [
      ["http://192.0.2.1:9", "source_unreachable"],
      [server.endpoint, "source_protocol"],
      [`${server.endpoint}#spiffe://fleet/author/*`, "source_protocol"],
      [`${server.endpoint.replace("https", "http")}#${sourceUri}`, "source_protocol"],
    ];
    for (const [endpoint, code] of wanted)
      await assert.rejects(
        fetcher.manifest({ endpoint, artifactId }, { bytesMax }, within()),
        withCode(code),
      );
  });
});

describe("a source refuses a target", () => {
  const cases: Record<string, TlsMaterial> = {
    "of another authority": stranger.member(targetUri),
    "whose certificate has ended": fleet.member(targetUri, {
      notBefore: Date.now() - day,
      notAfter: Date.now() - hour,
    }),
    "whose certificate may not be a client's": fleet.member(targetUri, {
      purposes: ["server_auth"],
    }),
    "of another trust domain below the same authority": fleet.member(
      "spiffe://other/mirror/target",
    ),
    "without a role": fleet.member("spiffe://fleet/janitor/target"),
  };
  for (const [name, material] of Object.entries(cases)) {
    test(name, async () => {
      using tree = makeTree({ kernel: 100 });
      // It believes the source, so that only the source can refuse.
      const believing = { ...material, authorities: source.authorities };
      await using asking = startHttpFetcher({ threads: 1, tls: believing });
      await server.offer(offerOf(tree));
      const at = {
        endpoint: `${server.endpoint}#${sourceUri}`,
        artifactId: tree.manifest.artifactId,
      };
      await assert.rejects(asking.manifest(at, { bytesMax }, within()));
      assert.equal(server.stats().bytesSent, 0);
    });
  }

  test("without a certificate, and one that offers TLS 1.2 only", async () => {
    const before = server.stats().strangers;
    const authority = fleet.authority.certificate.x509.toString();
    assert.equal(await statusOf({ ca: authority }), null);
    assert.equal(
      await statusOf({
        ...secureContextOptions(tlsIdentity(target)),
        minVersion: "TLSv1.2",
        maxVersion: "TLSv1.2",
      }),
      null,
    );
    assert.equal(await statusOf(secureContextOptions(tlsIdentity(target))), "HTTP/1.1 200 OK");
    assert.ok(server.stats().strangers > before);
  });
});

test("a fetcher without a certificate reaches no source behind TLS", async () => {
  using tree = makeTree({ kernel: 1 });
  await using bare = startHttpFetcher({ threads: 1 });
  const at = { endpoint: `${server.endpoint}#${sourceUri}`, artifactId: tree.manifest.artifactId };
  await assert.rejects(bare.manifest(at, { bytesMax }, within()), withCode("source_unreachable"));
});

test("startHttpServer() refuses plaintext beyond loopback", async () => {
  await assert.rejects(
    startHttpServer({ host: "0.0.0.0", port: 0, events }),
    withCode("config_invalid"),
  );
});

test("renew() on both sides carries a transfer over to new certificates and a new authority", async () => {
  using tree = makeTree({ first: 200_000, second: 300_000 });
  using folder = makeFolder();
  await using rotating = await serve(source);
  await using asking = startHttpFetcher({ threads: 1, tls: target });
  await rotating.offer(offerOf(tree));
  const into = stagingFor(tree, folder.path);
  const order = {
    endpoint: `${rotating.endpoint}#${sourceUri}`,
    artifactId: tree.manifest.artifactId,
    into,
  };
  await asking.pieces({ ...order, pieces: [0] }, () => {}, within());
  const next = liveFleet();
  await rotating.renew(next.member(sourceUri));
  // What the old authority issued counts no more, whoever it was.
  await using late = startHttpFetcher({ threads: 1, tls: target });
  await assert.rejects(
    late.pieces({ ...order, pieces: [1] }, () => {}, within()),
    withCode("certificate_invalid"),
  );
  asking.renew(next.member(targetUri));
  await asking.pieces({ ...order, pieces: [1] }, () => {}, within());
  assert.deepEqual(differences(tree, folder.path), []);
});

test("a revoked key ends open connections on both sides, and is refused by code at the next", async () => {
  using tree = makeTree({ kernel: 100 });
  await using serving = await serve(source);
  await serving.offer(offerOf(tree));
  const { artifactId } = tree.manifest;
  const at = { endpoint: `${serving.endpoint}#${sourceUri}`, artifactId };
  const raw = tls.connect({
    host,
    port: Number(new URL(serving.endpoint).port),
    ...secureContextOptions(tlsIdentity(target)),
    checkServerIdentity: () => undefined,
  });
  raw.on("error", () => {});
  const ended = new Promise((resolve) => raw.on("close", resolve));
  await new Promise((resolve) => raw.on("secureConnect", resolve));
  await using asking = startHttpFetcher({ threads: 1, tls: target });
  assert.deepEqual(await asking.manifest(at, { bytesMax }, within()), tree.manifest.bytes);
  await serving.renew({
    ...source,
    revokedKeys: [keyIdOf(createPublicKey(Buffer.from(target.key)))],
  });
  await ended;
  // The idle connection is gone; the next one is told why.
  await assert.rejects(asking.manifest(at, { bytesMax }, within()), withCode("source_protocol"));
  await serving.renew(source);
  assert.deepEqual(await asking.manifest(at, { bytesMax }, within()), tree.manifest.bytes);
  const revokedKeys = [keyIdOf(createPublicKey(Buffer.from(source.key)))];
  asking.renew({ ...target, revokedKeys });
  await assert.rejects(
    asking.manifest(at, { bytesMax }, within()),
    withCode("certificate_revoked"),
  );
});

test("handshakes beyond the limit of a second are ended unheard and counted, and a member still gets in", async () => {
  await using limited = await serve(source, { handshakesPerSecondMax: 5 });
  const port = Number(new URL(limited.endpoint).port);
  const sockets = Array.from({ length: 50 }, () => net.connect(port, host));
  await Promise.all(
    sockets.map(async (socket, index) => {
      socket.on("error", () => {});
      // The first few are let in and say nothing; the rest are hung up on.
      if (index >= 20) await new Promise((resolve) => socket.on("close", resolve));
    }),
  );
  for (const socket of sockets) socket.destroy();
  assert.ok(limited.stats().strangers >= 30);
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  using tree = makeTree({ kernel: 100 });
  await limited.offer(offerOf(tree));
  const at = { endpoint: `${limited.endpoint}#${sourceUri}`, artifactId: tree.manifest.artifactId };
  assert.deepEqual(await fetcher.manifest(at, { bytesMax }, within()), tree.manifest.bytes);
});

function serve(
  material: TlsMaterial,
  limits: Partial<ServerLimits> = {},
): Promise<HttpPieceServer> {
  return startHttpServer({ host, port: 0, threads: 1, events, tls: material, limits });
}

/** What a target is told: the endpoint and whom to expect there. */
function named(plain: PieceServer, uri: string): PieceServer {
  return {
    endpoint: `${plain.endpoint}#${uri}`,
    offer: (offer) => plain.offer(offer),
    relocate: (artifactId, files) => plain.relocate(artifactId, files),
    withdraw: (artifactId) => plain.withdraw(artifactId),
    stats: () => plain.stats(),
    [Symbol.asyncDispose]: () => plain[Symbol.asyncDispose](),
  };
}

/** The first line that the server answers /healthz with; null when it hangs up instead. */
async function statusOf(options: tls.ConnectionOptions): Promise<string | null> {
  const port = Number(new URL(server.endpoint).port);
  const socket = tls.connect({ host, port, ...options, checkServerIdentity: () => undefined });
  socket.on("error", () => {});
  socket.write("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  let text = "";
  socket.on("data", (bytes) => {
    text += bytes.toString("latin1");
  });
  // Not once(): it would reject with the alert that the server sends on its way out.
  await new Promise((resolve) => socket.on("close", resolve));
  return text.split("\r\n")[0] || null;
}
