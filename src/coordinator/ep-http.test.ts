// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { describe, test } from "node:test";
import { groupConfig, occupant } from "../../test/support/ep-group.ts";
import { newMember } from "../elastic/member.ts";
import { asRelightError, RelightError } from "../errors.ts";
import { MemoryStore } from "../store/memory.ts";
import type { Caller } from "../trust/roles.ts";
import { type Access, mustBeAllowed } from "./access.ts";
import { Groups } from "./ep-groups.ts";
import { EpHttp } from "./ep-http.ts";
import { bindHttp, closeHttp } from "./http.ts";

/** Bearer tokens are names of roles. */
const access: Access = {
  admit: ({ authorization }, call) => {
    const role = authorization?.replace("Bearer ", "");
    if (role !== "reader" && role !== "operator")
      throw new RelightError("unauthenticated", "Cannot answer: no token");
    const caller: Caller = { role, name: "n" };
    mustBeAllowed(caller, call, null);
    return { caller, uri: `spiffe://fleet/${role}/n`, keyId: null };
  },
};

describe("expert groups over HTTP", () => {
  test("a reader looks, an operator operates, others neither", async () => {
    await using face = await open();
    const scale = { operation_id: "a", kind: "OPERATION_KIND_SCALE", ranks: 1 };
    assert.equal((await face.get("moe", null)).status, 401);
    assert.equal((await face.get("moe", "reader")).status, 200);
    assert.equal((await face.post("moe/operations", scale, "reader")).status, 403);
    assert.equal((await face.post("moe/operations", scale, null)).status, 401);
    assert.equal((await face.post("moe/operations", scale, "operator")).status, 202);
    assert.equal((await face.remove("moe/operations/a", "reader")).status, 403);
    assert.equal((await face.remove("moe/operations/a", "operator")).status, 202);
  });

  test("a body that is no JSON object of the message is refused and changes nothing", async () => {
    await using face = await open();
    for (const body of [
      "[]",
      "{",
      "null",
      '{"operation_id":1}',
      '{"unknown":true}',
      "x".repeat(70_000),
    ]) {
      const { status } = await face.send("moe/operations", "POST", { body, role: "operator" });
      assert.equal(status, 400, body.slice(0, 20));
    }
    const typeless = await face.send("moe/operations", "POST", {
      body: "{}",
      role: "operator",
      type: "text/plain",
    });
    assert.equal(typeless.status, 400);
    const after: unknown = await (await face.get("moe", "reader")).json();
    assert.ok(typeof after === "object" && after !== null && !("operation" in after));
  });

  test("what does not exist is not found", async () => {
    await using face = await open();
    for (const path of ["none", "moe/operations/none", "%2e%2e"]) {
      assert.equal((await face.get(path, "reader")).status, 404);
    }
    assert.deepEqual(await (await face.get("", "reader")).json(), { groups: ["moe"] });
  });
});

async function open() {
  const clock = { now: () => 1_000, after: () => () => {} };
  const groups = new Groups({ store: new MemoryStore(), clock });
  const config = groupConfig();
  const { status } = newMember("a");
  const candidate = { occupant: occupant("a"), wantedSlot: null };
  const from = { nodeId: "node-a", owner: null };
  await groups.keeperFor(config).hello({ config, status, from, candidate }, () => {});
  const face = new EpHttp(groups, access);
  const server = createServer((request, response) => {
    face.answer(request).then(
      (answer) => {
        response.writeHead(answer?.status ?? 404).end(JSON.stringify(answer?.body ?? {}));
      },
      (error: unknown) => {
        const { facts, code } = asRelightError(error);
        response.writeHead(facts.http).end(JSON.stringify({ code }));
      },
    );
  });
  const port = await bindHttp(server, { host: "127.0.0.1", port: 0 });
  const send = (
    path: string,
    method: string,
    {
      body,
      role,
      type = "application/json",
    }: { body?: string; role: string | null; type?: string },
  ): Promise<Response> =>
    fetch(`http://127.0.0.1:${port}/v1/ep/${path}`, {
      method,
      headers: {
        "content-type": type,
        ...(role === null ? {} : { authorization: `Bearer ${role}` }),
      },
      ...(body === undefined ? {} : { body }),
    });
  return {
    send,
    get: (path: string, role: string | null) => send(path, "GET", { role }),
    remove: (path: string, role: string | null) => send(path, "DELETE", { role }),
    post: (path: string, body: object, role: string | null) =>
      send(path, "POST", { body: JSON.stringify(body), role }),
    [Symbol.asyncDispose]: async () => {
      await closeHttp(server);
      await groups[Symbol.asyncDispose]();
    },
  };
}
