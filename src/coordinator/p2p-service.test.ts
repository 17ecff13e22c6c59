// SPDX-License-Identifier: Apache-2.0
// What ModelExpress clients rely on where time or a failing store matters; the rest of the protocol is
// claimed by test/integration/python-client.

import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { rejectsWith } from "../../test/support/rejects.ts";
import { RelightError } from "../errors.ts";
import {
  GetMetadataRequestSchema,
  GetMetadataResponseSchema,
  ListSourcesRequestSchema,
  PublishMetadataRequestSchema,
  SourceStatus,
  UpdateStatusRequestSchema,
} from "../protocol/gen/p2p_pb.ts";
import { MemoryStore } from "../store/memory.ts";
import type { Store } from "../store/store.ts";
import { P2pService } from "./p2p-service.ts";
import { Registry } from "./registry.ts";

const signal = new AbortController().signal;
const identity = { modelName: "org/model" };

test("READY filter drops what was silent for 90 s, though no deadline has been looked at", async () => {
  const world = openWorld();
  await world.publish();
  world.now += 90_000;
  assert.deepEqual(await world.list({ statusFilter: SourceStatus.READY }), ["w"]);
  world.now += 1;
  assert.deepEqual(await world.list({ statusFilter: SourceStatus.READY }), []);
  assert.deepEqual(await world.list({}), ["w"]);
});

test("a limit counts what passes the filters, and 0 is no limit", async () => {
  const world = openWorld();
  for (const workerId of ["silent", "a", "b"]) {
    await world.publish({ workerId });
    if (workerId === "silent") world.now += 60_000;
  }
  world.now += 31_000;
  const filter = { statusFilter: SourceStatus.READY };
  assert.deepEqual((await world.list({ ...filter, limit: 2 })).sort(), ["a", "b"]);
  assert.equal((await world.list({ limit: 0 })).length, 3);
});

test("a worker published without a status is INITIALIZING", async () => {
  const world = openWorld();
  await world.publish({ worker: {} });
  assert.deepEqual(await world.list({ statusFilter: SourceStatus.INITIALIZING }), ["w"]);
  assert.deepEqual(await world.list({ statusFilter: SourceStatus.UNKNOWN }), []);
});

test("an unknown status filter is refused and does not list everything", async () => {
  const world = openWorld();
  await world.publish();
  await rejectsWith("request_invalid", world.list({ statusFilter: 99 as SourceStatus }));
});

test("fields of a later protocol come back as they were sent", async () => {
  const world = openWorld();
  const request = toBinary(PublishMetadataRequestSchema, publishRequest({}));
  // Field 77 of the worker, a string; the worker is field 2 of the request.
  const later = [0xea, 0x04, 0x03, 0x61, 0x62, 0x63];
  const worker = [0x12, later.length, ...later];
  const extended = fromBinary(
    PublishMetadataRequestSchema,
    Buffer.concat([request, Buffer.from(worker)]),
  );
  const { mxSourceId } = await world.service.publishMetadata(extended, signal);
  const got = await world.service.getMetadata(
    create(GetMetadataRequestSchema, { mxSourceId, workerId: "w" }),
    signal,
  );
  const bytes = Buffer.from(toBinary(GetMetadataResponseSchema, got));
  assert.ok(bytes.includes(Buffer.from(later)), bytes.toString("hex"));
});

test("ids that nobody can have published are unknown, however long", async () => {
  const world = openWorld(brokenStore());
  const long = "x".repeat(100_000);
  for (const [mxSourceId, workerId] of [
    [long, "w"],
    ["0".repeat(16), long],
    ["../../../../x", "w"],
  ]) {
    const key = { mxSourceId: mxSourceId ?? "", workerId: workerId ?? "" };
    const got = await world.service.getMetadata(create(GetMetadataRequestSchema, key), signal);
    assert.equal(got.found, false);
    const update = create(UpdateStatusRequestSchema, { ...key, status: SourceStatus.READY });
    assert.equal((await world.service.updateStatus(update, signal)).success, false);
  }
});

test("a store that fails is an error for every call, never an empty answer", async () => {
  const world = openWorld(brokenStore());
  const unavailable = (promise: Promise<unknown>): Promise<void> =>
    rejectsWith("store_unavailable", promise);
  await unavailable(world.publish());
  await unavailable(world.list({}));
  await unavailable(world.list({ identity: {} }));
  const key = { mxSourceId: "0".repeat(16), workerId: "w" };
  await unavailable(world.service.getMetadata(create(GetMetadataRequestSchema, key), signal));
  const update = create(UpdateStatusRequestSchema, { ...key, status: SourceStatus.READY });
  await unavailable(world.service.updateStatus(update, signal));
});

interface World {
  now: number;
  readonly service: P2pService;
  publish(fields?: MessageInitShape<typeof PublishMetadataRequestSchema>): Promise<void>;
  list(fields: MessageInitShape<typeof ListSourcesRequestSchema>): Promise<string[]>;
}

function openWorld(store: Store = new MemoryStore()): World {
  const clock = { now: () => world.now };
  const registry = new Registry({ store, clock, newSessionId: () => "unused" });
  const world: World = {
    now: 1_000_000,
    service: new P2pService(registry),
    publish: async (fields = {}) => {
      const response = await world.service.publishMetadata(publishRequest(fields), signal);
      assert.equal(response.success, true, response.message);
    },
    list: async (fields) => {
      const request = create(ListSourcesRequestSchema, Object.assign({ identity }, fields));
      const { instances } = await world.service.listSources(request, signal);
      return instances.map(({ workerId }) => workerId);
    },
  };
  return world;
}

function publishRequest(
  fields: MessageInitShape<typeof PublishMetadataRequestSchema>,
): ReturnType<typeof create<typeof PublishMetadataRequestSchema>> {
  const base = { identity, worker: { status: SourceStatus.READY }, workerId: "w" };
  return create(PublishMetadataRequestSchema, Object.assign(base, fields));
}

function brokenStore(): Store {
  const fail = async (): Promise<never> => {
    throw new RelightError("store_unavailable", "Cannot answer: told to fail");
  };
  return {
    get: fail,
    read: fail,
    put: fail,
    remove: fail,
    ofSource: fail,
    onShelf: fail,
    // biome-ignore lint/correctness/useYield: it fails before the first batch.
    all: async function* () {
      await fail();
    },
    putBoot: fail,
    document: fail,
    putDocument: fail,
    documentNames: fail,
    boots: fail,
    probe: fail,
    [Symbol.asyncDispose]: async () => {},
  };
}
