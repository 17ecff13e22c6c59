// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  authorise,
  type Call,
  callerFromUri,
  callerUri,
  callNames,
  type Role,
  roles,
} from "./roles.ts";

const allowedFor: Record<Role, Call[]> = {
  reader: [
    "source.list",
    "source.get",
    "source.watch",
    "session.open",
    "boot.report",
    "boot.read",
    "bytes.read",
    "certificate.renew",
    "policy.read",
    "ep.read",
  ],
  mirror: ["source.publish", "source.update", "ep.join"],
  author: ["source.publish", "source.update", "artifact.author", "ep.join"],
  operator: callNames,
};

describe("roles", () => {
  test("authorise() allows each role its own calls and no others", () => {
    for (const role of roles) {
      const wanted = new Set([...allowedFor.reader, ...allowedFor[role]]);
      const got = callNames.filter(
        (call) => authorise({ role, name: "n" }, call, null).state === "allowed",
      );
      assert.deepEqual(new Set(got), wanted, role);
    }
  });

  test("authorise() lets nobody but an operator change the record of another", () => {
    for (const role of roles) {
      for (const call of [
        "source.publish",
        "source.update",
        "session.open",
        "boot.report",
        "certificate.renew",
        "ep.join",
      ] as const) {
        const verdict = authorise({ role, name: "n1" }, call, "n2");
        assert.equal(verdict.state, role === "operator" ? "allowed" : "refused", `${role} ${call}`);
      }
    }
    assert.equal(authorise({ role: "author", name: "n1" }, "source.update", "n1").state, "allowed");
  });

  test("callerFromUri() reads back callerUri() and nothing of another domain, role or depth", () => {
    const caller = { role: "author", name: "node-7" } as const;
    assert.deepEqual(callerFromUri("fleet", callerUri("fleet", caller)), caller);
    for (const uri of [
      "spiffe://other/author/n",
      "spiffe://fleet/admin/n",
      "spiffe://fleet/author",
      "spiffe://fleet/author/n/x",
      "spiffe://fleet/author/..",
      "https://fleet/author/n",
      "",
    ])
      assert.equal(callerFromUri("fleet", uri), null, uri);
  });
});
