// SPDX-License-Identifier: Apache-2.0
// relight.v1 over real sockets: the agent's client against a coordinator, and what happens when one of
// them goes away.

import assert from "node:assert/strict";
import { connect as connectSocket, createServer, type Server, type Socket } from "node:net";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type CoordinatorClient,
  connectCoordinator,
  type Identity,
  type SessionChange,
  type WatchEvent,
} from "../../src/agent/coordinator-client.ts";
import { startCoordinator } from "../../src/coordinator/main.ts";
import { RelightError } from "../../src/errors.ts";
import { coordinatorFixture, loopback, publication } from "../support/coordinator.ts";
import { rejectsWith } from "../support/rejects.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const identity: Identity = { modelName: "org/model", mxSourceType: 4 };
const hello = { nodeId: "node-1", agentEndpoint: "http://127.0.0.1:7001" };
const within = (): AbortSignal => AbortSignal.timeout(20_000);

describe("publish and find", () => {
  test("what one agent publishes another finds, with every field and in the order asked", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const session = await client.openSession(hello, within());
    const { sourceId } = await client.publish(publication({ sessionId: session.id }), within());
    const other: Identity = { modelName: "org/other" };
    const [none, found] = await fixture.connect().find([other, identity], {}, within());
    assert.deepEqual(none, []);
    const [source] = found ?? [];
    assert.ok(Math.abs((source?.publishedAtMs ?? 0) - Date.now()) < 60_000);
    assert.deepEqual(source, {
      ...source,
      sourceId,
      workerId: "worker-1",
      endpoints: ["http://127.0.0.1:7001"],
      complete: true,
      readers: 0,
      artifact: publication({ sessionId: session.id }).artifact,
    });
  });

  test("the newest artifact of a worker replaces the one before", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const { id: sessionId } = await client.openSession(hello, within());
    const first = publication({ sessionId, complete: false });
    const delta = {
      ...first.artifact,
      artifactId: "ef".repeat(32),
      baseArtifactIds: [first.artifact.artifactId],
    };
    await client.publish(first, within());
    await client.publish(publication({ sessionId, artifact: delta }), within());
    const [found] = await client.find([identity], {}, within());
    assert.deepEqual(
      found?.map(({ artifact, complete }) => [artifact, complete]),
      [[delta, true]],
    );
  });

  test("a target does not find itself, and nothing that is not ready", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const { id: sessionId } = await client.openSession(hello, within());
    await client.publish(publication({ sessionId }), within());
    await client.publish(
      publication({ sessionId, workerId: "cold", status: "initializing" }),
      within(),
    );
    assert.deepEqual(await client.find([identity], { excludeWorkerId: "worker-1" }, within()), [
      [],
    ]);
  });

  test("readers told in heartbeats decide whom a target is sent to", async () => {
    await using fixture = await coordinatorFixture({ limits: { heartbeatMs: 50 } });
    const { client } = fixture;
    for (const [workerId, readers] of [
      ["busy", 7],
      ["idle", 0],
    ] as const) {
      const session = await client.openSession({ ...hello, nodeId: workerId }, within());
      session.setReaders(readers);
      await client.publish(publication({ sessionId: session.id, workerId }), within());
    }
    const found = await until(async () => {
      const [sources] = await client.find([identity], {}, within());
      return sources?.some(({ readers }) => readers === 7) ? sources : undefined;
    });
    assert.deepEqual(
      found.map(({ workerId }) => workerId),
      ["idle", "busy"],
    );
  });

  test("withdraw() takes one source back and leaves the others", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const { id: sessionId } = await client.openSession(hello, within());
    const { sourceId } = await client.publish(publication({ sessionId }), within());
    const other: Identity = { modelName: "org/other" };
    await client.publish(publication({ sessionId, identity: other }), within());
    const what = { sessionId, workerId: "worker-1", sourceId };
    assert.deepEqual(await client.withdraw(what, within()), { withdrawn: 1 });
    const found = await client.find([identity, other], {}, within());
    assert.deepEqual(
      found.map((sources) => sources.length),
      [0, 1],
    );
  });

  test("what Relight publishes is listed to ModelExpress clients", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const { id: sessionId } = await client.openSession(hello, within());
    const { sourceId } = await client.publish(publication({ sessionId }), within());
    const refs = await client.listSources({ identity, statusFilter: 2 }, within());
    assert.deepEqual(
      refs.map(({ mxSourceId, workerId }) => [mxSourceId, workerId]),
      [[sourceId, "worker-1"]],
    );
    await client.updateStatus({ sourceId, workerId: "worker-1", status: "stale" }, within());
    assert.deepEqual(await client.listSources({ identity, statusFilter: 2 }, within()), []);
    const late = client.updateStatus({ sourceId, workerId: "worker-1", status: "ready" }, within());
    await rejectsWith("coordinator_refused", late);
  });
});

describe("sessions", () => {
  test("close() withholds at once, and a publish after it is refused", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const session = await client.openSession(hello, within());
    const { id: sessionId } = session;
    await client.publish(publication({ sessionId }), within());
    await session.close(within());
    assert.deepEqual(await client.find([identity], {}, within()), [[]]);
    await rejectsWith("coordinator_refused", client.publish(publication({ sessionId }), within()));
    await session.close(within());
  });

  test("a session whose process vanishes stays for the grace and is then withheld", async (t) => {
    await using fixture = await coordinatorFixture();
    const gone = connectCoordinator({ address: fixture.coordinator.grpcAddress, timeoutMs: 5_000 });
    const { id: sessionId } = await gone.openSession(hello, within());
    await gone.publish(publication({ sessionId }), within());
    const vanishedMs = performance.now();
    await gone[Symbol.asyncDispose]();
    const [still] = await fixture.client.find([identity], {}, within());
    assert.equal(still?.length, 1, "the grace for a reconnection has begun");
    await until(async () => {
      const [found] = await fixture.client.find([identity], {}, within());
      return found?.length === 0 ? true : undefined;
    });
    t.diagnostic(`withheld after ${Math.round(performance.now() - vanishedMs)} ms`);
  });

  test("a cut connection comes back under the same id, and its sources stay", async () => {
    await using fixture = await coordinatorFixture();
    await using proxy = await cuttable(fixture.coordinator.grpcAddress);
    await using client = connectCoordinator({ address: proxy.address, timeoutMs: 5_000 });
    const session = await client.openSession(hello, within());
    await client.publish(publication({ sessionId: session.id }), within());
    const changes = recorded(session.onChange.bind(session));
    proxy.cut();
    const restored = await until(async () => changes.find(({ type }) => type === "restored"));
    assert.deepEqual(restored, { type: "restored", resumed: true, sessionId: session.id });
    assert.equal(changes[0]?.type, "lost");
    const [found] = await fixture.client.find([identity], {}, within());
    assert.equal(found?.length, 1);
  });

  test("a session that was away too long comes back under a new id and says so", async () => {
    await using fixture = await coordinatorFixture({
      limits: { heartbeatMs: 50, sessionGraceMs: 300 },
    });
    await using proxy = await cuttable(fixture.coordinator.grpcAddress);
    await using client = connectCoordinator({ address: proxy.address, timeoutMs: 5_000 });
    const session = await client.openSession(hello, within());
    const before = session.id;
    await client.publish(publication({ sessionId: before }), within());
    const changes = recorded(session.onChange.bind(session));
    const events: WatchEvent[] = [];
    const stop = new AbortController();
    const watching = fixture.client.watch([identity], (event) => events.push(event), stop.signal);
    proxy.refuse(true);
    await until(async () => events.find(({ type }) => type === "removed"));
    stop.abort();
    await watching;
    proxy.refuse(false);
    const restored = await until(async () => changes.find(({ type }) => type === "restored"));
    assert.deepEqual(restored, { type: "restored", resumed: false, sessionId: session.id });
    assert.notEqual(session.id, before);
    await client.publish(publication({ sessionId: session.id }), within());
    assert.equal((await fixture.client.find([identity], {}, within()))[0]?.length, 1);
  });

  test("an agent whose connection is silent but open is withheld too", async () => {
    await using fixture = await coordinatorFixture({
      limits: { heartbeatMs: 50, sessionGraceMs: 300 },
    });
    await using proxy = await cuttable(fixture.coordinator.grpcAddress);
    await using client = connectCoordinator({ address: proxy.address, timeoutMs: 5_000 });
    const { id: sessionId } = await client.openSession(hello, within());
    await client.publish(publication({ sessionId }), within());
    proxy.freeze();
    await until(async () => {
      const [found] = await fixture.client.find([identity], {}, within());
      return found?.length === 0 ? true : undefined;
    });
  });

  test("sessions and sources outlive a restart of the coordinator on its store", async () => {
    using folder = temporaryFolder();
    const store = { kind: "lmdb", directory: folder.path("store") } as const;
    const first = await startCoordinator({ grpc: loopback, store });
    await using client = connectCoordinator({ address: first.grpcAddress, timeoutMs: 5_000 });
    const session = await client.openSession(hello, within());
    await client.publish(publication({ sessionId: session.id }), within());
    const changes = recorded(session.onChange.bind(session));
    await first.stop();
    const port = Number(first.grpcAddress.split(":")[1]);
    await using _second = await startCoordinator({ grpc: { ...loopback, port }, store });
    const restored = await until(async () => changes.find(({ type }) => type === "restored"));
    assert.deepEqual(restored, { type: "restored", resumed: true, sessionId: session.id });
    assert.equal((await client.find([identity], {}, within()))[0]?.length, 1);
  });

  test("openSession() says coordinator_unreachable when nobody listens", async () => {
    await using client = connectCoordinator({ address: "127.0.0.1:1", timeoutMs: 1_000 });
    await rejectsWith("coordinator_unreachable", client.openSession(hello, within()));
    await rejectsWith("coordinator_unreachable", client.find([identity], {}, within()));
  });

  test("a call whose signal fires rejects with its reason at once", async () => {
    await using fixture = await coordinatorFixture();
    const reason = new RelightError("deadline_exceeded", "Cannot finish: the budget is used up");
    const fired = AbortSignal.abort(reason);
    await assert.rejects(fixture.client.find([identity], {}, fired), reason);
    await assert.rejects(fixture.client.openSession(hello, fired), reason);
    await fixture.client.watch([identity], () => {}, fired);
  });
});

test("a closed client rejects every call, and closing it ends its session's stream", async () => {
  await using fixture = await coordinatorFixture();
  const client = connectCoordinator({
    address: fixture.coordinator.grpcAddress,
    timeoutMs: 5_000,
  });
  const session = await client.openSession(hello, within());
  await client[Symbol.asyncDispose]();
  assert.equal(session.isConnected, false);
  await rejectsWith("cancelled", client.find([identity], {}, within()));
  await rejectsWith("cancelled", client.openSession(hello, within()));
  await client.watch([identity], () => {}, within());
});

describe("watch", () => {
  test("a watcher gets the snapshot, its end, then every change", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const session = await client.openSession(hello, within());
    const { id: sessionId } = session;
    await client.publish(publication({ sessionId }), within());
    const events: WatchEvent[] = [];
    const stop = new AbortController();
    const watching = fixture
      .connect()
      .watch([identity], (event) => events.push(event), stop.signal);
    await until(async () => events.find(({ type }) => type === "snapshot_done"));
    await client.publish(publication({ sessionId, workerId: "worker-2" }), within());
    await client.publish(
      publication({ sessionId, workerId: "worker-2", complete: false }),
      within(),
    );
    await session.close(within());
    await until(async () => (events.length >= 6 ? true : undefined));
    stop.abort();
    await watching;
    assert.deepEqual(events.map(nameOf), [
      "added worker-1",
      "snapshot_done",
      "added worker-2",
      "updated worker-2",
      "removed worker-1",
      "removed worker-2",
    ]);
  });

  test("watch() rejects when the coordinator stops", async () => {
    const fixture = await coordinatorFixture();
    const events: WatchEvent[] = [];
    const watching = fixture.client.watch([identity], (event) => events.push(event), within());
    const refused = assert.rejects(watching, RelightError);
    await until(async () => events.find(({ type }) => type === "snapshot_done"));
    await fixture.coordinator.stop();
    await refused;
    await fixture[Symbol.asyncDispose]();
  });
});

describe("boots", () => {
  test("reported boots are listed newest first, the same boot once", async () => {
    await using fixture = await coordinatorFixture();
    const { client } = fixture;
    const recordJson = Buffer.from(JSON.stringify({ phases: [{ name: "fetch", ms: 12 }] }));
    const report = { nodeId: "n", model: "m", startedAtMs: 1_000, readyMs: 2_500.4, recordJson };
    for (const bootId of ["a", "b", "a"]) await client.reportBoot({ ...report, bootId }, within());
    await client.reportBoot({ ...report, bootId: "c", readyMs: null }, within());
    const boots = await client.listBoots(2, within());
    assert.deepEqual(
      boots.map(({ bootId, readyMs }) => [bootId, readyMs]),
      [
        ["c", null],
        ["a", 2_500],
      ],
    );
    assert.deepEqual(Buffer.from(boots[1]?.recordJson ?? []), recordJson);
    assert.equal((await client.listBoots(0, within())).length, 3);
  });
});

describe("malformed requests", () => {
  const cases: Readonly<
    Record<string, (client: CoordinatorClient, sessionId: string) => Promise<unknown>>
  > = {
    "an artifact id that is no digest": (client, sessionId) =>
      client.publish(
        publication({ sessionId, artifact: { ...artifact, artifactId: "../../etc" } }),
        within(),
      ),
    "a family that is no name": (client, sessionId) =>
      client.publish(
        publication({ sessionId, artifact: { ...artifact, family: "a/b" } }),
        within(),
      ),
    "more bytes than can be counted": (client, sessionId) =>
      client.publish(
        publication({ sessionId, artifact: { ...artifact, totalBytes: 2 ** 60 } }),
        within(),
      ),
    "no endpoint": (client, sessionId) =>
      client.publish(publication({ sessionId, endpoints: [] }), within()),
    "an endpoint of another scheme": (client, sessionId) =>
      client.publish(publication({ sessionId, endpoints: ["file:///etc/passwd"] }), within()),
    "an endpoint with credentials": (client, sessionId) =>
      client.publish(publication({ sessionId, endpoints: ["http://u:p@host:1"] }), within()),
    "too many endpoints": (client, sessionId) =>
      client.publish(publication({ sessionId, endpoints: Array(17).fill("http://h:1") }), within()),
    "too many base artifacts": (client, sessionId) => {
      const baseArtifactIds = Array.from({ length: 65 }, () => "ab".repeat(32));
      return client.publish(
        publication({ sessionId, artifact: { ...artifact, baseArtifactIds } }),
        within(),
      );
    },
    "no model name": (client, sessionId) =>
      client.publish(publication({ sessionId, identity: {} }), within()),
    "a worker id with control characters": (client, sessionId) =>
      client.publish(publication({ sessionId, workerId: "a\0b" }), within()),
    "a worker id without end": (client, sessionId) =>
      client.publish(publication({ sessionId, workerId: "w".repeat(10_000) }), within()),
    "an unknown session": (client) =>
      client.publish(publication({ sessionId: "nobody" }), within()),
    "no identity to find": (client) => client.find([], {}, within()),
    "too many identities": (client) => client.find(Array(65).fill(identity), {}, within()),
    "too high a limit": (client) => client.find([identity], { limit: 257 }, within()),
    "a boot record that is no JSON": (client) =>
      client.reportBoot(bootOf(Buffer.from("{")), within()),
    "a boot record that is no object": (client) =>
      client.reportBoot(bootOf(Buffer.from("[]")), within()),
    "a boot record of more than 1 MiB": (client) =>
      client.reportBoot(
        bootOf(Buffer.from(JSON.stringify({ a: "x".repeat(1_048_576) }))),
        within(),
      ),
    "a hello without node": (client) =>
      client.openSession({ nodeId: "", agentEndpoint: "" }, within()),
    "a watch of nothing": (client) => client.watch([], () => {}, within()),
  };
  const { artifact } = publication({ sessionId: "" });

  for (const [name, act] of Object.entries(cases)) {
    test(`${name} is refused with words, and the coordinator serves on`, async () => {
      await using fixture = await coordinatorFixture();
      const { id } = await fixture.client.openSession(hello, within());
      await rejectsWith("coordinator_refused", act(fixture.client, id));
      assert.deepEqual(await fixture.client.find([identity], {}, within()), [[]]);
    });
  }
});

function bootOf(recordJson: Uint8Array): Parameters<CoordinatorClient["reportBoot"]>[0] {
  return { bootId: "b", nodeId: "n", model: "m", startedAtMs: 1, readyMs: null, recordJson };
}

function recorded(onChange: (listener: (change: SessionChange) => void) => void): SessionChange[] {
  const changes: SessionChange[] = [];
  onChange((change) => changes.push(change));
  return changes;
}

function nameOf(event: WatchEvent): string {
  if (event.type === "snapshot_done") return event.type;
  return `${event.type} ${event.type === "removed" ? event.workerId : event.source.workerId}`;
}

/** Polls until `look` gives something; the test's own limit ends it otherwise. */
async function until<Value>(look: () => Promise<Value | undefined>): Promise<Value> {
  for (const limit = within(); !limit.aborted; ) {
    const value = await look();
    if (value !== undefined) return value;
    await sleep(20);
  }
  throw new Error("it did not happen in time");
}

interface Cuttable extends AsyncDisposable {
  readonly address: string;
  /** Resets every connection. */
  cut(): void;
  /** Resets every connection and every new one. */
  refuse(isRefusing: boolean): void;
  /** Keeps connections open and carries nothing any more. */
  freeze(): void;
}

/** A TCP proxy in front of the coordinator that a test can break. */
async function cuttable(target: string): Promise<Cuttable> {
  const [host = "", port = ""] = target.split(":");
  const pairs = new Set<readonly [Socket, Socket]>();
  let isRefusing = false;
  const server: Server = createServer((incoming) => {
    if (isRefusing) return incoming.resetAndDestroy();
    const outgoing = connectSocket(Number(port), host);
    const pair = [incoming, outgoing] as const;
    pairs.add(pair);
    for (const [from, to] of [pair, [outgoing, incoming] as const]) {
      from.pipe(to);
      from.on("error", () => to.destroy());
      from.on("close", () => pairs.delete(pair));
    }
    return undefined;
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const bound = server.address();
  const cut = (): void => {
    for (const pair of pairs) for (const socket of pair) socket.resetAndDestroy();
  };
  return {
    address: `127.0.0.1:${typeof bound === "object" ? bound?.port : 0}`,
    cut,
    refuse: (refusing) => {
      isRefusing = refusing;
      if (refusing) cut();
    },
    freeze: () => {
      for (const [incoming, outgoing] of pairs) {
        incoming.unpipe();
        outgoing.unpipe();
        incoming.pause();
        outgoing.pause();
      }
    },
    [Symbol.asyncDispose]: async () => {
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
