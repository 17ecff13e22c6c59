// SPDX-License-Identifier: Apache-2.0
// Messages of strangers, decoded and handled by the very services behind the sockets, and rows of a
// store directory that something else wrote: an answer or a RelightError, and no answer that breaks a
// limit.

import assert from "node:assert/strict";
import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { P2pService } from "../../src/coordinator/p2p-service.ts";
import { Registry } from "../../src/coordinator/registry.ts";
import { RelightService } from "../../src/coordinator/relight-service.ts";
import { RelightError } from "../../src/errors.ts";
import {
  ListSourcesRequestSchema,
  PublishMetadataRequestSchema,
  UpdateStatusRequestSchema,
} from "../../src/protocol/gen/p2p_pb.ts";
import {
  FindRequestSchema,
  PublishRequestSchema,
  ReportBootRequestSchema,
} from "../../src/protocol/gen/relight_pb.ts";
import { limits } from "../../src/protocol/limits.ts";
import { isSourceId, sourceIdOf } from "../../src/protocol/source-id.ts";
import { decodeBoot, decodeHead, encodeBoot, encodeHead } from "../../src/store/lmdb-form.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { FuzzTarget } from "../support/fuzz.ts";
import { boot, sourceHead } from "../support/source-head.ts";

const signal = new AbortController().signal;
const identity = { modelName: "org/model", extraParameters: { training_step: "7", Foo: "a" } };
const artifact = {
  artifactId: "ab".repeat(32),
  family: "triton",
  totalBytes: 5n,
  baseArtifactIds: ["cd".repeat(32)],
};
const publish = {
  identity,
  workerId: "w",
  artifact,
  endpoints: ["http://h:1"],
  complete: true,
  status: 2 as const,
};
const worker = { status: 2 as const, tensors: [{ name: "t", addr: 1n }], agentName: "a" };
const report = { bootId: "b", nodeId: "n", recordJson: Buffer.from('{"a":[1]}') };

export const targets: readonly FuzzTarget[] = [
  {
    name: "RelightService.publish()",
    seeds: [encoded(PublishRequestSchema, publish)],
    run: async (bytes) => {
      const { registry, relight } = services();
      const { id: sessionId } = registry.hello({ nodeId: "n", agentEndpoint: "", sessionId: null });
      const request = decoded(PublishRequestSchema, bytes);
      const { sourceId } = await relight.publish({ ...request, sessionId }, signal);
      const find = create(
        FindRequestSchema,
        request.identity ? { identities: [request.identity] } : {},
      );
      const found = (await relight.find(find, signal)).results.flatMap(({ sources }) => sources);
      assert.equal(isSourceId(sourceId), true);
      for (const source of found) {
        assert.match(source.artifact?.artifactId ?? "", /^[0-9a-f]{64}$/);
        assert.ok(source.endpoints.length <= limits.endpointsMax);
        for (const endpoint of source.endpoints) assert.match(endpoint, /^https?:/i);
      }
    },
  },
  {
    name: "RelightService.find()",
    seeds: [
      encoded(FindRequestSchema, {
        identities: [identity, { modelName: "b" }],
        limit: 8,
        excludeWorkerId: "w",
      }),
    ],
    run: async (bytes) => {
      const request = decoded(FindRequestSchema, bytes);
      const { results } = await services().relight.find(request, signal);
      assert.equal(results.length, request.identities.length);
    },
  },
  {
    name: "RelightService.reportBoot()",
    seeds: [encoded(ReportBootRequestSchema, { report })],
    run: async (bytes) => {
      await services().relight.reportBoot(decoded(ReportBootRequestSchema, bytes), signal);
    },
  },
  {
    name: "P2pService.publishMetadata()",
    seeds: [encoded(PublishMetadataRequestSchema, { identity, worker, workerId: "w" })],
    run: async (bytes) => {
      const { p2p } = services();
      const request = decoded(PublishMetadataRequestSchema, bytes);
      const { success, mxSourceId, workerId } = await p2p.publishMetadata(request, signal);
      if (!success) throw new RelightError("request_invalid", "refused in the answer");
      const got = await p2p.getMetadata(
        { $typeName: "model_express.p2p.GetMetadataRequest", mxSourceId, workerId },
        signal,
      );
      assert.equal(got.found, true);
      assert.equal(got.identity && sourceIdOf(got.identity), mxSourceId);
    },
  },
  {
    name: "P2pService.listSources()",
    seeds: [
      encoded(ListSourcesRequestSchema, {
        identity,
        statusFilter: 2,
        limit: 1,
        minTrainingStep: 1n,
      }),
    ],
    run: async (bytes) => {
      await services().p2p.listSources(decoded(ListSourcesRequestSchema, bytes), signal);
    },
  },
  {
    name: "P2pService.updateStatus()",
    seeds: [
      encoded(UpdateStatusRequestSchema, { mxSourceId: "0".repeat(16), workerId: "w", status: 2 }),
    ],
    run: async (bytes) => {
      await services().p2p.updateStatus(decoded(UpdateStatusRequestSchema, bytes), signal);
    },
  },
  {
    name: "decodeHead()",
    seeds: [
      row(encodeHead(sourceHead())),
      row(encodeHead(sourceHead({ offer: null, trainingStep: 3n }))),
    ],
    run: (bytes) => {
      const head = decodeHead({ sourceId: "0".repeat(16), workerId: "w" }, unpacked(bytes));
      assert.deepEqual(decodeHead(head, encodeHead(head)), head);
    },
  },
  {
    name: "decodeBoot()",
    seeds: [row(encodeBoot({ ...boot(), record: Buffer.from("{}") }))],
    run: (bytes) => {
      const decodedBoot = decodeBoot(unpacked(bytes));
      assert.deepEqual(decodeBoot(encodeBoot(decodedBoot)), decodedBoot);
    },
  },
];

function services(): { registry: Registry; relight: RelightService; p2p: P2pService } {
  const registry = new Registry({
    store: new MemoryStore(),
    clock: { now: () => 1 },
    newSessionId: () => "s",
  });
  return {
    registry,
    relight: new RelightService(registry, { budgetMs: 1_000 }),
    p2p: new P2pService(registry),
  };
}

function encoded<Desc extends DescMessage>(schema: Desc, init: MessageInitShape<Desc>): Uint8Array {
  return toBinary(schema, create(schema, init));
}

/** What grpc-js answers with INTERNAL when the bytes are no message. */
function decoded<Desc extends DescMessage>(
  schema: Desc,
  bytes: Uint8Array,
): ReturnType<typeof fromBinary<Desc>> {
  try {
    return fromBinary(schema, bytes);
  } catch (cause) {
    throw new RelightError("request_invalid", "Cannot read the message", { cause });
  }
}

/** A row of any shape as text; a Buffer is an object with its bytes in base64. */
function row(values: readonly unknown[]): string {
  const plain = values.map((value) =>
    Buffer.isBuffer(value) ? { base64: value.toString("base64") } : value,
  );
  return JSON.stringify(plain);
}

function unpacked(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString(), (_, value: unknown) =>
      typeof value === "object" && value !== null && "base64" in value
        ? Buffer.from(String(value.base64), "base64")
        : value,
    );
  } catch (cause) {
    throw new RelightError("store_corrupt", "Cannot read the row", { cause });
  }
}
