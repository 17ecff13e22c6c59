// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  alice,
  authorityOf,
  identityOf,
  leafOf,
  mallory,
  policyDocument,
  root,
  ruleOf,
} from "../../test/support/trust.ts";
import { writePublicKey } from "./keys.ts";
import { decodePolicy, encodePolicy, makePolicy, type PolicyDocument } from "./policy.ts";
import { nextPolicy, revoke } from "./setup.ts";

const fleet = authorityOf();
const authority = {
  name: "fleet",
  certificate: fleet.certificate.der.toString("base64"),
  purpose: "code_signing" as const,
};

describe("policy", () => {
  test("decodePolicy() gives back what encodePolicy() was given", () => {
    const document = policyDocument({
      authorities: [authority],
      identities: [
        identityOf("alice", alice),
        { name: "warmers", authority: "fleet", uri: "spiffe://fleet/author/*" },
        { name: "builders", authority: "fleet", dns: "*.warm.example.com" },
      ],
      rules: [ruleOf({ identities: ["warmers"], models: ["org/*"] })],
    });
    const policy = decodePolicy(encodePolicy(document));
    assert.deepEqual(policy.document, document);
    assert.equal(policy.anchors.get("alice"), alice.publicKey.keyId);
    assert.equal(policy.anchors.get("warmers"), fleet.certificate.keyId);
  });

  const contradictions: [string, Partial<PolicyDocument>][] = [
    ["a rule that names no identity", { rules: [ruleOf({ identities: ["nobody"] })] }],
    [
      "two identities of one name",
      { identities: [identityOf("a", alice), identityOf("a", mallory)], rules: [] },
    ],
    [
      "an identity below an authority that is not there",
      { identities: [{ name: "w", authority: "none", uri: "spiffe://a/b" }], rules: [] },
    ],
    ["two authorities of one name", { authorities: [authority, authority] }],
    [
      "a leaf as authority",
      { authorities: [{ ...authority, certificate: leafOf(fleet, alice).toString("base64") }] },
    ],
    [
      "a threshold above the count of roots",
      { roots: { threshold: 2, keys: [writePublicKey(root.publicKey)] } },
    ],
    [
      "a root key twice",
      { roots: { threshold: 2, keys: Array(2).fill(writePublicKey(root.publicKey)) } },
    ],
    ["a root key that it revokes", { revoked: { keys: [root.publicKey.keyId], artifacts: [] } }],
    ["an end before its beginning", { expiresAt: "2020-01-01T00:00:00.000Z" }],
    ["a key of another kind", { identities: [{ name: "a", key: "AAAA" }], rules: [] }],
  ];
  for (const [what, change] of contradictions) {
    test(`makePolicy() refuses ${what}`, () => {
      assert.throws(() => makePolicy(policyDocument(change)), { code: "policy_invalid" });
    });
  }

  const malformed: [string, unknown][] = [
    ["another format", { ...policyDocument(), format: "relight.policy.v2" }],
    ["a field nobody knows", { ...policyDocument(), allowUnsigned: true }],
    ["version 0", policyDocument({ version: 0 })],
    ["a fraction as version", { ...policyDocument(), version: 1.5 }],
    ["a time without milliseconds", policyDocument({ issuedAt: "2026-01-01T00:00:00Z" })],
    ["a 30th of February", policyDocument({ issuedAt: "2026-02-30T00:00:00.000Z" })],
    [
      "a SPIFFE pattern with a star inside",
      policyDocument({ identities: [{ name: "w", authority: "f", uri: "spiffe://*/author/w" }] }),
    ],
    [
      "a SPIFFE pattern without path",
      policyDocument({ identities: [{ name: "w", authority: "f", uri: "spiffe://fleet" }] }),
    ],
    [
      "a DNS pattern with a star alone",
      policyDocument({ identities: [{ name: "w", authority: "f", dns: "*" }] }),
    ],
    ["a rule for nobody", policyDocument({ rules: [ruleOf({ identities: [] })] })],
    ["a threshold of 0", policyDocument({ rules: [ruleOf({ threshold: 0 })] })],
    ["a list", []],
  ];
  for (const [what, value] of malformed) {
    test(`decodePolicy() refuses ${what}`, () => {
      assert.throws(() => decodePolicy(Buffer.from(JSON.stringify(value))), {
        code: "policy_invalid",
      });
    });
  }

  test("decodePolicy() refuses a spelling that is not canonical, such as a key given twice", () => {
    const text = encodePolicy(policyDocument()).toString();
    const twice = text.replace('"version":1', '"version":1,"version":1');
    assert.throws(() => decodePolicy(Buffer.from(twice)), {
      code: "policy_invalid",
      message: /canonical/,
    });
    assert.throws(() => decodePolicy(Buffer.from(` ${text}`)), { code: "policy_invalid" });
  });

  test("nextPolicy() is one version on and keeps what was revoked", () => {
    const span = { now: Date.parse("2026-12-01T00:00:00.000Z"), lifetimeMs: 1_000 };
    const first = nextPolicy(
      policyDocument(),
      revoke(policyDocument(), { keys: [mallory.publicKey.keyId] }),
      span,
    );
    const second = nextPolicy(first, revoke(first, { artifacts: ["b".repeat(64)] }), span);
    assert.equal(second.version, 3);
    assert.deepEqual(second.revoked, {
      keys: [mallory.publicKey.keyId],
      artifacts: ["b".repeat(64)],
    });
  });
});
