// SPDX-License-Identifier: Apache-2.0
// Identities beside each other, as the coordinator has them.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { identityOf, mergeFacts } from "../artifacts/identity.ts";
import { inductor } from "../artifacts/kinds/inductor.ts";
import { triton } from "../artifacts/kinds/triton.ts";
import { differencesOf, toSourceIdentity } from "./identity-wire.ts";

const facts = { machine: "x86_64", torch: "2.11.0", triton_key: "k1", model: "org/M" };
const wire = (more: Partial<typeof facts>, extra: Record<string, string> = {}, family = triton) =>
  toSourceIdentity(identityOf(family, mergeFacts({ ...facts, ...more }), extra));

describe("differencesOf()", () => {
  test("names each fact with both values, also one that only one side knows and one the user gave", () => {
    const differences = differencesOf(
      wire({ triton_key: "" }),
      wire({ torch: "2.10.0" }, { team: "b" }),
    );
    assert.deepEqual(differences?.toSorted(), [
      "torch: 2.10.0 there, 2.11.0 here",
      "triton_key: k1 there, unknown here",
      "user.team: b there, unknown here",
    ]);
  });

  test("is empty for what the coordinator takes for equal, and null for another family", () => {
    assert.deepEqual(differencesOf(wire({}), wire({ model: "ORG/m" })), []);
    assert.equal(differencesOf(wire({}), wire({}, {}, inductor)), null);
  });
});
