// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { describe, test } from "node:test";
import tls from "node:tls";
import { authorityOf, day, hour, leafOf } from "../../test/support/trust.ts";
import { readCertificate } from "./certificate.ts";
import { generateKey, privateKeyPem, signerFrom } from "./keys.ts";
import {
  checkServer,
  findAuthority,
  identifyPeer,
  secureContextOptions,
  type TlsIdentity,
} from "./tls.ts";

// OpenSSL looks at the machine's clock, so these certificates count today.
const present = Date.now();
const span = { notBefore: present - hour, notAfter: present + day };
const fleet = authorityOf(span);
const stranger = authorityOf(span);

function identity(
  uri: string,
  {
    authority = fleet,
    ...changes
  }: { authority?: typeof fleet } & Partial<Parameters<typeof leafOf>[2]> = {},
): TlsIdentity {
  const key = generateKey("p256");
  const leaf = leafOf(authority, signerFrom(key), {
    ...span,
    uris: [uri],
    purposes: ["client_auth", "server_auth"],
    ...changes,
  });
  const authorities = [fleet.certificate];
  return { privateKeyPem: privateKeyPem(key), chain: [leaf], authorities, revokedKeys: new Set() };
}

const source = identity("spiffe://fleet/author/source");
const target = identity("spiffe://fleet/mirror/target");

/** One handshake on loopback: whom the server saw, or the code by which either side refused. */
async function shake(
  options: {
    client?: TlsIdentity | null;
    server?: TlsIdentity;
    wanted?: string;
    version?: "TLSv1.2" | "TLSv1.3";
  } = {},
): Promise<string> {
  const {
    client = target,
    server: shown = source,
    wanted = "spiffe://fleet/author/source",
    version,
  } = options;
  const server = tls.createServer({
    ...secureContextOptions(shown),
    requestCert: true,
    rejectUnauthorized: true,
  });
  const seen = Promise.withResolvers<string>();
  server.on("secureConnection", (socket) => {
    socket.on("error", () => {});
    const { authorities, revokedKeys } = shown;
    const peer = { authorities, revokedKeys, purpose: "client_auth" as const, now: present };
    try {
      seen.resolve(identifyPeer(socket.getPeerCertificate(true), peer).uri);
    } catch (error) {
      seen.resolve((error as { code: string }).code);
    }
    socket.end();
  });
  server.on("tlsClientError", (error: Error & { code?: string }) =>
    seen.resolve(`refused: ${error.code}`),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const socket = tls.connect({
    host: "127.0.0.1",
    port: (server.address() as AddressInfo).port,
    ...(client === null ? { ca: fleet.certificate.x509.toString() } : secureContextOptions(client)),
    ...(version === undefined ? {} : { minVersion: version, maxVersion: version }),
    checkServerIdentity: checkServer(client ?? target, {
      wanted,
      now: () => present,
    }) as typeof tls.checkServerIdentity,
  });
  const closed = new Promise((resolve) => socket.once("close", resolve));
  const connected = new Promise<null>((resolve) =>
    socket.once("secureConnect", () => resolve(null)),
  );
  const refused = new Promise<string>((resolve) =>
    socket.on("error", (thrown: Error & { code?: string }) => resolve(`client: ${thrown.code}`)),
  );
  try {
    // In TLS 1.3 a client is done before the server has judged it, and the other way round.
    return (
      (await Promise.race([connected, refused])) ?? (await Promise.race([seen.promise, refused]))
    );
  } finally {
    socket.destroy();
    await closed;
    server.close();
  }
}

describe("mutual TLS", () => {
  test("both sides learn who the other is", async () => {
    assert.equal(await shake(), "spiffe://fleet/mirror/target");
    assert.equal(
      await shake({ wanted: "spiffe://fleet/author/*" }),
      "spiffe://fleet/mirror/target",
    );
  });

  test("a client refuses a server of the fleet that is not the one it was sent to", async () => {
    assert.equal(
      await shake({ wanted: "spiffe://fleet/author/other" }),
      "client: certificate_invalid",
    );
  });

  test("a client refuses a server of another authority, and one that may only be a client", async () => {
    const foreign = { ...identity("spiffe://fleet/author/source", { authority: stranger }) };
    assert.match(await shake({ server: foreign }), /^client: (SELF_SIGNED|UNABLE|DEPTH_ZERO)/);
    const clientOnly = identity("spiffe://fleet/author/source", { purposes: ["client_auth"] });
    assert.match(await shake({ server: clientOnly }), /^client: /);
  });

  test("a server refuses no certificate, one of another authority, one that is over, one that may only serve", async () => {
    const refused: (TlsIdentity | null)[] = [
      null,
      identity("spiffe://fleet/mirror/target", { authority: stranger }),
      identity("spiffe://fleet/mirror/target", {
        notBefore: present - day,
        notAfter: present - hour,
      }),
      identity("spiffe://fleet/mirror/target", { purposes: ["server_auth"] }),
    ];
    for (const client of refused) assert.match(await shake({ client }), /^(refused|client): /);
  });

  test("a server refuses a certificate that another agent's certificate issued", async () => {
    const key = generateKey("p256");
    const agent = {
      certificate: readCertificate(leafOf(fleet, signerFrom(key), { ...span })),
      privateKey: key,
    };
    const forged = identity("spiffe://fleet/operator/root", { authority: agent });
    const client = { ...forged, chain: [...forged.chain, agent.certificate.der] };
    assert.match(await shake({ client }), /^(refused|client): /);
  });

  test("a certificate with two ids or with none is nobody's", async () => {
    for (const uris of [
      ["spiffe://fleet/mirror/a", "spiffe://fleet/mirror/b"],
      ["https://fleet/mirror/a"],
    ])
      assert.equal(await shake({ client: identity("", { uris }) }), "certificate_invalid");
  });

  test("TLS 1.2 is refused", async () => {
    assert.match(await shake({ version: "TLSv1.2" }), /^(refused|client): /);
  });

  test("findAuthority() takes only the authority whose fingerprint the token names", () => {
    const leaf = readCertificate(leafOf(fleet, signerFrom(generateKey("p256"))));
    const chain = [leaf, stranger.certificate, fleet.certificate];
    assert.equal(findAuthority(chain, fleet.certificate.fingerprint), fleet.certificate);
    for (const wrong of ["0".repeat(64), leaf.fingerprint])
      assert.throws(() => findAuthority(chain, wrong), { code: "certificate_invalid" });
  });
});
