// SPDX-License-Identifier: Apache-2.0
// Policies: as bytes, and with whatever JSON they still are signed by the root. An accepted policy must
// hold what its type promises, whatever was changed in it.

import assert from "node:assert/strict";
import { acceptPolicy } from "../../src/trust/accept-policy.ts";
import { encodeEnvelope, signEnvelope } from "../../src/trust/envelope.ts";
import {
  decodePolicy,
  encodePolicy,
  type Policy,
  policyPayloadType,
} from "../../src/trust/policy.ts";
import type { FuzzTarget } from "../support/fuzz.ts";
import { canonicalBytes } from "../support/signed-json.ts";
import { authorityOf, mallory, now, policyDocument, root, ruleOf } from "../support/trust.ts";

const fleet = authorityOf().certificate.der.toString("base64");
const documents = [
  policyDocument({ version: 2 }),
  policyDocument({
    version: 7,
    authorities: [{ name: "fleet", certificate: fleet, purpose: "code_signing" }],
    identities: [
      { name: "warmers", authority: "fleet", uri: "spiffe://fleet/author/*" },
      { name: "builders", authority: "fleet", dns: "*.warm.example.com" },
    ],
    rules: [ruleOf({ identities: ["warmers", "builders"], models: ["org/*", "x"], threshold: 2 })],
    authoredAfter: "2026-01-01T00:00:00.000Z",
    revoked: {
      keys: [mallory.publicKey.keyId],
      artifacts: ["ab".repeat(32) as typeof mallory.publicKey.keyId],
    },
  }),
];
const acceptance = {
  roots: { threshold: 1, keys: [root.publicKey] },
  revokedKeys: new Set<string>(),
  newest: { version: 1, digest: "" },
  now,
};

export const targets: readonly FuzzTarget[] = [
  {
    name: "decodePolicy()",
    seeds: documents.map(encodePolicy),
    run: (bytes) => {
      const input = Buffer.from(bytes);
      const policy = decodePolicy(input);
      assert.ok(encodePolicy(policy.document).equals(input), "another spelling was accepted");
      checkPromises(policy);
    },
  },
  {
    name: "acceptPolicy() of what the root signed",
    seeds: documents.map(encodePolicy),
    run: (bytes) => {
      const payload = canonicalBytes(bytes);
      const signed = signEnvelope({ payloadType: policyPayloadType, payload }, [root]);
      const policy = acceptPolicy(encodeEnvelope(signed), acceptance);
      checkPromises(policy);
      assert.ok(policy.version > acceptance.newest.version, "an older version was accepted");
      assert.ok(policy.roots.keys.some(({ keyId }) => keyId === root.publicKey.keyId));
    },
  },
];

function checkPromises(policy: Policy): void {
  const names = new Set(policy.document.identities.map(({ name }) => name));
  assert.equal(policy.anchors.size, names.size, "an identity without an anchor");
  for (const rule of policy.document.rules) {
    assert.ok(rule.threshold >= 1);
    for (const name of rule.identities) assert.ok(names.has(name));
  }
  assert.ok(policy.expiresAt > policy.issuedAt);
}
