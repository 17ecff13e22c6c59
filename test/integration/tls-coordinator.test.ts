// SPDX-License-Identifier: Apache-2.0
// The coordinator behind mutual TLS 1.3: who gets in, who may do what, and whose records are whose.

import assert from "node:assert/strict";
import { createPublicKey } from "node:crypto";
import net from "node:net";
import { describe, test } from "node:test";
import tls from "node:tls";
import { create } from "@bufbuild/protobuf";
import { Client, credentials, Metadata } from "@grpc/grpc-js";
import type { CoordinatorClient, Identity } from "../../src/agent/coordinator-client.ts";
import { startCoordinator } from "../../src/coordinator/main.ts";
import { RelightError } from "../../src/errors.ts";
import { P2pService } from "../../src/protocol/gen/p2p_pb.ts";
import { grpcMethod } from "../../src/protocol/grpc.ts";
import { readBearerTokens } from "../../src/trust/bearer.ts";
import { writeCertificatePem } from "../../src/trust/certificate.ts";
import { keyIdOf } from "../../src/trust/keys.ts";
import { signPolicy } from "../../src/trust/setup.ts";
import { coordinatorUri } from "../../src/trust/tls-material.ts";
import { loopback, publication } from "../support/coordinator.ts";
import { type FleetFixture, fixed, fleetFixture } from "../support/fleet.ts";
import { day, hour, liveFleet, policyDocument, root } from "../support/trust.ts";

const identity: Identity = { modelName: "org/model", mxSourceType: 4 };
const within = () => AbortSignal.timeout(10_000);
const past = { notBefore: Date.now() - day, notAfter: Date.now() - hour };

function refusedWith(coordinatorCode: string) {
  return (error: unknown) => {
    assert.ok(error instanceof RelightError);
    assert.equal(error.details["coordinatorCode"], coordinatorCode, error.message);
    return true;
  };
}

async function find(client: CoordinatorClient) {
  const [found] = await client.find([identity], {}, within());
  return found ?? [];
}

describe("the coordinator behind TLS", () => {
  test("tells targets whom to expect at a source, by the certificate that published it", async () => {
    await using fixture = await fleetFixture();
    const { fleet, connect } = fixture;
    const author = connect(fleet.member("spiffe://fleet/author/node-a"));
    const session = await author.openSession({ nodeId: "a", agentEndpoint: "" }, within());
    const endpoints = ["https://127.0.0.1:7001"];
    await author.publish({ ...publication({ sessionId: session.id }), endpoints }, within());
    const [source] = await find(connect(fleet.member("spiffe://fleet/reader/node-b")));
    assert.deepEqual(source?.endpoints, ["https://127.0.0.1:7001#spiffe://fleet/author/node-a"]);
  });

  test("refuses who shows no certificate of this fleet that counts now", async () => {
    await using fixture = await fleetFixture();
    const { fleet, connect } = fixture;
    const stranger = liveFleet();
    const believing = { authorities: [fleet.authority.certificate.der] };
    const uri = "spiffe://fleet/operator/root";
    const refused = {
      foreign: { ...stranger.member(uri), ...believing },
      past: fleet.member(uri, past),
      server: fleet.member(uri, { purposes: ["server_auth"] }),
    };
    for (const material of Object.values(refused))
      await assert.rejects(find(connect(material)), refusedWith("unauthenticated"));
    for (const other of ["spiffe://fleet/janitor/node", "spiffe://fleet/operator/a/b"]) {
      const { chain, key } = fleet.member(other);
      using raw = rawClient(fixture, chain[0], key);
      assert.equal(await raw.listSources(), "certificate_invalid");
    }
  });

  test("refuses a member of another trust domain below the same authority", async () => {
    await using fixture = await fleetFixture();
    const other = { ...fixture.fleet.member("spiffe://other/operator/root") };
    // Shows that certificate while expecting this fleet's coordinator, as an attacker's client would.
    using raw = rawClient(fixture, other.chain[0], other.key);
    assert.equal(await raw.listSources(), "certificate_invalid");
  });

  test("holds each role to its calls", async () => {
    await using fixture = await fleetFixture();
    const { fleet, connect } = fixture;
    const reader = connect(fleet.member("spiffe://fleet/reader/node-b"));
    const session = await reader.openSession({ nodeId: "b", agentEndpoint: "" }, within());
    await assert.rejects(
      reader.publish(publication({ sessionId: session.id }), within()),
      refusedWith("role_denied"),
    );
    const update = { sourceId: "0".repeat(16), workerId: "worker-1", status: "stale" } as const;
    await assert.rejects(reader.updateStatus(update, within()), refusedWith("role_denied"));
    assert.deepEqual(await find(reader), []);
  });

  test("takes reports of a boot from the node that it names", async () => {
    await using fixture = await fleetFixture();
    const node = fixture.connect(fixture.fleet.member("spiffe://fleet/reader/node-b"));
    const report = {
      bootId: "boot-1",
      nodeId: "node-b",
      model: "",
      startedAtMs: 1,
      readyMs: null,
      recordJson: Buffer.from("{}"),
    };
    await node.reportBoot(report, within());
    const foreign = { ...report, bootId: "boot-2", nodeId: "node-a" };
    await assert.rejects(node.reportBoot(foreign, within()), refusedWith("role_denied"));
    assert.deepEqual(
      (await node.listBoots(10, within())).map(({ bootId }) => bootId),
      ["boot-1"],
    );
  });

  test("lets a worker change its own records only; an operator may change them all", async () => {
    await using fixture = await fleetFixture();
    const { fleet, connect } = fixture;
    const owner = connect(fleet.member("spiffe://fleet/mirror/node-a"));
    const other = connect(fleet.member("spiffe://fleet/author/node-b"));
    const operator = connect(fleet.member("spiffe://fleet/operator/root"));
    const own = await owner.openSession({ nodeId: "a", agentEndpoint: "" }, within());
    const foreign = await other.openSession({ nodeId: "b", agentEndpoint: "" }, within());
    const { sourceId } = await owner.publish(publication({ sessionId: own.id }), within());
    const workerId = "worker-1";
    const denied = refusedWith("role_denied");
    const theft = {
      "replace the record in its own session": () =>
        other.publish(publication({ sessionId: foreign.id }), within()),
      "publish in the owner's session": () =>
        other.publish(publication({ sessionId: own.id, workerId: "worker-2" }), within()),
      "withdraw in the owner's session": () =>
        other.withdraw({ sessionId: own.id, workerId }, within()),
      "mark it stale": () => other.updateStatus({ sourceId, workerId, status: "stale" }, within()),
    };
    for (const [name, attempt] of Object.entries(theft))
      await assert.rejects(attempt, denied, name);
    // Its session ends; what it could not take does not fall with it.
    await foreign.close(within());
    assert.equal((await find(operator)).length, 1);
    await operator.updateStatus({ sourceId, workerId, status: "stale" }, within());
    assert.equal((await find(operator)).length, 0);
  });

  test("takes a renewed certificate of the same name for the owner", async () => {
    await using fixture = await fleetFixture();
    const { fleet, connect } = fixture;
    const owner = connect(fleet.member("spiffe://fleet/mirror/node-a"));
    const session = await owner.openSession({ nodeId: "a", agentEndpoint: "" }, within());
    const { sourceId } = await owner.publish(publication({ sessionId: session.id }), within());
    const renewed = connect(fleet.member("spiffe://fleet/author/node-a"));
    await renewed.updateStatus({ sourceId, workerId: "worker-1", status: "stale" }, within());
  });

  test("knows callers without a certificate by their bearer tokens, and nobody by a wrong one", async () => {
    const token = "t".repeat(40);
    const tokens = readBearerTokens(Buffer.from(`reader mx-client ${token}\n`));
    await using fixture = await fleetFixture({ tokens: () => tokens });
    using raw = rawClient(fixture);
    assert.equal(await raw.listSources(), "unauthenticated");
    assert.equal(await raw.listSources(`Bearer ${token}`), "ok");
    for (let attempt = 0; attempt < 100; attempt++)
      assert.equal(
        await raw.listSources(`Bearer ${"t".repeat(39)}${attempt % 10}`),
        "token_invalid",
      );
    assert.equal(await raw.listSources(`Bearer ${token}t`), "token_invalid");
  });

  test("takes up another file of bearer tokens while it runs, so that they can be rotated", async () => {
    const [old, next] = ["o".repeat(40), "n".repeat(40)];
    const fileOf = (...list: string[]) =>
      readBearerTokens(Buffer.from(list.map((each) => `reader mx ${each}\n`).join("")));
    let tokens = fileOf(old);
    await using fixture = await fleetFixture({ tokens: () => tokens });
    using raw = rawClient(fixture);
    const becomes = async (token: string, wanted: string) => {
      for (const until = Date.now() + 20_000; ; ) {
        if ((await raw.listSources(`Bearer ${token}`)) === wanted) return;
        assert.ok(Date.now() < until, `${wanted} for ${token}`);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    };
    assert.equal(await raw.listSources(`Bearer ${old}`), "ok");
    assert.equal(await raw.listSources(`Bearer ${next}`), "token_invalid");
    tokens = fileOf(old, next);
    await becomes(next, "ok");
    assert.equal(await raw.listSources(`Bearer ${old}`), "ok", "both count while they overlap");
    tokens = fileOf(next);
    await becomes(old, "token_invalid");
  });

  test("ends the session of a member whose key is revoked, and refuses its next call by code", async () => {
    let policy = signPolicy(policyDocument({ version: 3 }), [root]);
    await using fixture = await fleetFixture({}, () => policy);
    const { fleet, connect } = fixture;
    const material = fleet.member("spiffe://fleet/author/node-a");
    const revoked = connect(material);
    const other = connect(fleet.member("spiffe://fleet/author/node-b"));
    const hello = { nodeId: "a", agentEndpoint: "" };
    const session = await revoked.openSession(hello, within());
    const staying = await other.openSession({ ...hello, nodeId: "b" }, within());
    const lost = new Promise<void>((resolve) => {
      session.onChange(({ type }) => type === "lost" && resolve());
    });
    const keys = [keyIdOf(createPublicKey(Buffer.from(material.key)))];
    policy = signPolicy(policyDocument({ version: 4, revoked: { keys, artifacts: [] } }), [root]);
    await lost;
    await assert.rejects(find(connect(material)), { code: "certificate_revoked" });
    using raw = rawClient(fixture, material.chain[0], material.key);
    assert.equal(await raw.listSources(), "certificate_revoked");
    assert.equal(staying.isConnected, true, "others are not disturbed");
    // An older file in its place takes nothing back.
    policy = signPolicy(policyDocument({ version: 2 }), [root]);
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    await assert.rejects(find(connect(material)), { code: "certificate_revoked" });
  });

  test("takes no more connections than it may have, and ends those without a call", async () => {
    await using fixture = await fleetFixture({ limits: { connectionsMax: 3, idleMsMax: 1_000 } });
    const { fleet, coordinator } = fixture;
    const port = Number(coordinator.grpcAddress.split(":").at(-1));
    const member = (name: string) => fixture.connect(fleet.member(`spiffe://fleet/reader/${name}`));
    const held = [member("a"), member("b"), member("c")];
    for (const client of held) assert.deepEqual(await find(client), []);
    const beyond = net.connect(port, "127.0.0.1");
    beyond.on("error", () => {});
    await new Promise((resolve) => beyond.on("close", resolve));
    // Nobody calls any more: a place is free again.
    const late = member("late");
    for (const until = Date.now() + 20_000; ; ) {
      const found = await find(late).catch(() => null);
      if (found !== null) break;
      assert.ok(Date.now() < until, "a place is free again");
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  });

  test("hangs up on who agrees on TLS and then says nothing", async () => {
    await using fixture = await fleetFixture({ limits: { firstByteMsMax: 300 } });
    const socket = tls.connect({
      port: Number(fixture.coordinator.grpcAddress.split(":").at(-1)),
      host: "127.0.0.1",
      ALPNProtocols: ["h2"],
      rejectUnauthorized: false,
    });
    socket.on("error", () => {});
    await new Promise((resolve) => socket.on("close", resolve));
    assert.deepEqual(
      await find(fixture.connect(fixture.fleet.member("spiffe://fleet/reader/a"))),
      [],
    );
  });

  test("is not reached in plaintext, and is not taken for the coordinator under another name", async () => {
    await using fixture = await fleetFixture();
    const { connectCoordinator } = await import("../../src/agent/coordinator-client.ts");
    const { grpcAddress: address } = fixture.coordinator;
    await using plain = connectCoordinator({ address, timeoutMs: 2_000 });
    await assert.rejects(find(plain));
    const fleet = liveFleet();
    const impostor = fixed(fleet.member("spiffe://fleet/operator/somebody"));
    await using other = await startCoordinator({
      grpc: loopback,
      store: { kind: "memory" },
      tls: { source: impostor },
    });
    const shown = () => fleet.member("spiffe://fleet/author/node-a");
    const address2 = other.grpcAddress;
    await using client = connectCoordinator({ address: address2, timeoutMs: 2_000, tls: shown });
    await assert.rejects(find(client));
  });

  test("takes up renewed key material while it runs, and a client shows its newest", async () => {
    const first = liveFleet();
    const second = liveFleet();
    const both = [first, second].map((fleet) => fleet.authority.certificate.der);
    const trusting = (material: ReturnType<typeof first.member>) => ({
      ...material,
      authorities: both,
    });
    const uri = coordinatorUri("fleet");
    let material = trusting(first.member(uri));
    const source = {
      get material() {
        return material;
      },
      refresh: async () => true,
    };
    await using fixture = await fleetFixture({ source });
    const { connect } = fixture;
    assert.deepEqual(await find(connect(first.member("spiffe://fleet/reader/a"))), []);
    // The first authority goes: its members are no longer known, the second one's are.
    material = { ...second.member(uri), authorities: [second.authority.certificate.der] };
    const late = connect(second.member("spiffe://fleet/reader/b"));
    for (const ends = Date.now() + 8_000; ; ) {
      const found = await find(late).catch(() => null);
      if (found !== null) break;
      assert.ok(Date.now() < ends, "the new material is taken up");
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    await assert.rejects(find(connect(trusting(first.member("spiffe://fleet/reader/a")))));
  });

  test("hangs up on handshakes beyond the limit of a second and counts them", async () => {
    await using fixture = await fleetFixture({ limits: { handshakesPerSecondMax: 3 } });
    const port = Number(fixture.coordinator.grpcAddress.split(":").at(-1));
    const ended = Array.from({ length: 30 }, () => {
      const socket = net.connect(port, "127.0.0.1");
      socket.on("error", () => {});
      return new Promise<void>((resolve) => {
        socket.on("close", () => resolve());
        setTimeout(() => socket.destroy(), 3_000).unref();
      });
    });
    await Promise.race(ended);
    await new Promise((resolve) => setTimeout(resolve, 1_200));
    const member = fixture.connect(fixture.fleet.member("spiffe://fleet/reader/a"));
    assert.deepEqual(await find(member), []);
  });
});

test("startCoordinator() refuses plaintext beyond loopback", async () => {
  const store = { kind: "memory" } as const;
  for (const host of ["0.0.0.0", "::"])
    await assert.rejects(startCoordinator({ grpc: { host, port: 0 }, store }), {
      code: "config_invalid",
    });
});

/** A client of gRPC's own making, as ModelExpress has it. */
function rawClient({ coordinator, fleet }: FleetFixture, der?: Uint8Array, key?: Uint8Array) {
  const authority = Buffer.from(writeCertificatePem(fleet.authority.certificate.der));
  const own =
    der === undefined || key === undefined
      ? []
      : ([Buffer.from(key), Buffer.from(writeCertificatePem(Buffer.from(der)))] as const);
  const client = new Client(
    coordinator.grpcAddress,
    credentials.createSsl(authority, own[0], own[1], { checkServerIdentity: () => undefined }),
  );
  const { listSources } = P2pService.method;
  const { path, requestSerialize, responseDeserialize } = grpcMethod(listSources);
  return {
    /** "ok", or the code that the coordinator names. */
    listSources: (authorization?: string): Promise<string> => {
      const metadata = new Metadata();
      if (authorization !== undefined) metadata.set("authorization", authorization);
      return new Promise((resolve) => {
        const deadline = Date.now() + 5_000;
        client.makeUnaryRequest(
          path,
          requestSerialize,
          responseDeserialize,
          create(listSources.input),
          metadata,
          { deadline },
          (error) =>
            resolve(error === null ? "ok" : String(error.metadata.get("relight-code")[0] ?? error)),
        );
      });
    },
    [Symbol.dispose]: () => client.close(),
  };
}
