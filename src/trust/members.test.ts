// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type EnrolledMember, enrolMember, type Members } from "./members.ts";

const now = 1_000;
const until = (notAfter: number): EnrolledMember => ({ name: "node-7", role: "author", notAfter });
const asked = { ...until(5_000), keyId: "new", mayReplace: false };
const nobody = { now, isRevoked: () => false };

describe("enrolMember()", () => {
  test("gives a free name, and the same name to the same key again", () => {
    const first = enrolMember(new Map(), asked, nobody);
    assert.deepEqual([...first], [["new", until(5_000)]]);
    const renewed = enrolMember(first, { ...asked, notAfter: 9_000 }, nobody);
    assert.deepEqual([...renewed], [["new", until(9_000)]]);
  });

  test("refuses a name that another key holds, unless the operator gave it away by name", () => {
    const held: Members = new Map([["old", until(5_000)]]);
    assert.throws(() => enrolMember(held, asked, nobody), { code: "conflict" });
    const given = enrolMember(held, { ...asked, mayReplace: true }, nobody);
    assert.deepEqual([...given.keys()], ["old", "new"]);
  });

  test("gives the name of a certificate that has ended or of a key that is revoked", () => {
    const ended: Members = new Map([["old", until(now)]]);
    assert.deepEqual([...enrolMember(ended, asked, nobody).keys()], ["new"]);
    const held: Members = new Map([["old", until(5_000)]]);
    const isRevoked = (keyId: string) => keyId === "old";
    assert.ok(enrolMember(held, asked, { now, isRevoked }).has("new"));
  });
});
