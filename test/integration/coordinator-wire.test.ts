// SPDX-License-Identifier: Apache-2.0
// What only a client that is not ours would send on the session's stream, and whether the generated
// code is what the .proto files say.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Client, credentials, type ServiceError, status } from "@grpc/grpc-js";
import {
  Coordinator,
  type SessionEvent,
  SessionRequestSchema,
} from "../../src/protocol/gen/relight_pb.ts";
import { codeTrailer, grpcMethod } from "../../src/protocol/grpc.ts";
import { coordinatorFixture } from "../support/coordinator.ts";

type Kind = NonNullable<MessageInitShape<typeof SessionRequestSchema>["kind"]>;

const hello: Kind = { case: "hello", value: { nodeId: "n" } };
const heartbeat: Kind = { case: "heartbeat", value: { readers: 1 } };
const goodbye: Kind = { case: "goodbye", value: {} };

const refused: Readonly<Record<string, readonly Kind[]>> = {
  "a heartbeat before hello": [heartbeat],
  "a goodbye before hello": [goodbye],
  "a second hello": [hello, hello],
  "an empty message": [{ case: undefined }],
  "a hello with an endpoint that is no URL": [
    { case: "hello", value: { nodeId: "n", agentEndpoint: "javascript:1" } },
  ],
};

for (const [name, kinds] of Object.entries(refused)) {
  test(`${name} ends the session's stream with INVALID_ARGUMENT`, async () => {
    await using fixture = await coordinatorFixture();
    const { error } = await converse(fixture.coordinator.grpcAddress, kinds);
    assert.equal(error?.code, status.INVALID_ARGUMENT);
    assert.deepEqual(error?.metadata.get(codeTrailer), ["request_invalid"]);
  });
}

test("goodbye ends the stream without an error, after the welcome", async () => {
  await using fixture = await coordinatorFixture();
  const { error, events } = await converse(fixture.coordinator.grpcAddress, [hello, goodbye]);
  assert.equal(error, null);
  assert.deepEqual(
    events.map(({ kind }) => kind.case),
    ["welcome"],
  );
});

test("a heartbeat after the session has ended ends the stream, so that the agent says hello again", async () => {
  await using fixture = await coordinatorFixture({ limits: { sessionGraceMs: 300 } });
  const beats = Array<Kind>(1).fill(heartbeat);
  const { error } = await converse(fixture.coordinator.grpcAddress, [hello, ...beats], 1_500);
  assert.equal(error?.code, status.FAILED_PRECONDITION);
});

test("src/protocol/gen is what tools/protocol.ts makes of the .proto files", async () => {
  const root = join(import.meta.dirname, "../..");
  const check = ["tools/protocol.ts", "--check"];
  await promisify(execFile)(process.execPath, check, { cwd: root, timeout: 60_000 });
});

/** Says one thing after the other, the later ones after `pauseMs`, until the coordinator ends it. */
function converse(
  address: string,
  kinds: readonly Kind[],
  pauseMs = 0,
): Promise<{ error: ServiceError | null; events: readonly SessionEvent[] }> {
  const { path, requestSerialize, responseDeserialize } = grpcMethod(Coordinator.method.session);
  const client = new Client(address, credentials.createInsecure());
  const stream = client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize);
  const events: SessionEvent[] = [];
  const { promise, resolve } = Promise.withResolvers<ServiceError | null>();
  stream.on("data", (event: SessionEvent) => events.push(event));
  stream.on("error", (error: ServiceError) => resolve(error));
  stream.on("end", () => resolve(null));
  const [first, ...later] = kinds;
  if (first !== undefined) stream.write(create(SessionRequestSchema, { kind: first }));
  const timer = setTimeout(() => {
    for (const kind of later) stream.write(create(SessionRequestSchema, { kind }));
  }, pauseMs);
  return promise
    .then((error) => ({ error, events }))
    .finally(() => {
      clearTimeout(timer);
      client.close();
    });
}
