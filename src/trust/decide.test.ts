// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  alice,
  artifactId,
  authorityOf,
  bob,
  day,
  factsOf,
  hour,
  identityOf,
  leafOf,
  mallory,
  now,
  policyOf,
  provenBy,
  ruleOf,
  wantedOf,
} from "../../test/support/trust.ts";
import { decide, type Question } from "./decide.ts";
import { decodeEnvelope, encodeEnvelope, signEnvelope } from "./envelope.ts";
import { collectEvidence, type Evidence } from "./evidence.ts";
import { generateKey, signerFrom } from "./keys.ts";
import { makeReceipt, recheckReceipt } from "./receipt.ts";
import { timeText } from "./time.ts";

function ask(changes: Partial<Question> = {}): Question {
  return {
    policy: policyOf(),
    facts: factsOf(),
    evidence: [provenBy(alice)],
    wanted: wantedOf(),
    epochFloor: 0,
    now,
    ...changes,
  };
}

function codeOf(changes: Partial<Question>): string {
  const verdict = decide(ask(changes));
  return verdict.state === "allowed" ? "allowed" : verdict.code;
}

const invalid: Evidence = {
  state: "refused",
  keyId: bob.publicKey.keyId,
  code: "signature_invalid",
  reason: "it does not belong to these bytes",
};
const revoked = (signer: typeof alice) =>
  policyOf({ revoked: { keys: [signer.publicKey.keyId], artifacts: [] } });

describe("decide()", () => {
  test("allows what an authorised key signed, until the first thing it relies on ends", () => {
    const verdict = decide(ask());
    assert.equal(verdict.state, "allowed");
    assert.equal(verdict.state === "allowed" && verdict.until, factsOf().expiresAt);
    assert.equal(verdict.state === "allowed" && verdict.policyVersion, 1);
  });

  const rows: [string, string, Partial<Question>][] = [
    ["policy_missing", "without a policy", { policy: null }],
    ["policy_expired", "under a frozen policy", { now: now + 60 * day }],
    [
      "artifact_revoked",
      "a revoked artifact",
      { policy: policyOf({ revoked: { keys: [], artifacts: [artifactId] } }) },
    ],
    [
      "statement_mismatch",
      "another artifact than was asked for",
      { wanted: wantedOf({ artifactId: "b".repeat(64) }) },
    ],
    [
      "statement_mismatch",
      "a statement for another family",
      { facts: factsOf({ family: "flashinfer" }) },
    ],
    [
      "statement_mismatch",
      "a statement for another model",
      { facts: factsOf({ model: "org/other" }) },
    ],
    [
      "statement_mismatch",
      "a statement for another environment",
      { facts: factsOf({ environment: "staging" }) },
    ],
    [
      "statement_mismatch",
      "a statement for another GPU",
      { facts: factsOf({ identity: { gpu: "sm_100", triton: "3.5.0" } }) },
    ],
    [
      "statement_mismatch",
      "a statement that leaves a fact out",
      { facts: factsOf({ identity: { gpu: "sm_90" } }) },
    ],
    [
      "statement_mismatch",
      "a statement that adds a fact",
      { facts: factsOf({ identity: { ...factsOf().identity, tp: "8" } }) },
    ],
    ["statement_expired", "an expired statement", { facts: factsOf({ expiresAt: now }) }],
    [
      "statement_expired",
      "a statement from the future",
      { facts: factsOf({ createdAt: now + hour }) },
    ],
    [
      "statement_replayed",
      "an epoch below the policy's",
      { policy: policyOf({ minimumEpoch: 1 }) },
    ],
    ["statement_replayed", "an epoch below one installed already", { epochFloor: 1 }],
    [
      "statement_replayed",
      "what was created before the policy's cut",
      { policy: policyOf({ authoredAfter: timeText(now) }) },
    ],
    ["signature_missing", "what nobody signed", { evidence: [] }],
    ["signature_invalid", "what a wrong signature came with", { evidence: [invalid] }],
    [
      "signer_unknown",
      "a genuine signature by a key outside the policy",
      { evidence: [provenBy(mallory)] },
    ],
    [
      "signer_unknown",
      "a signer of another family",
      { policy: policyOf({ rules: [ruleOf({ families: ["flashinfer"] })] }) },
    ],
    [
      "signer_unknown",
      "a signer of another model",
      { policy: policyOf({ rules: [ruleOf({ models: ["org/other"] })] }) },
    ],
    [
      "signer_unknown",
      "a signer of another environment",
      { policy: policyOf({ rules: [ruleOf({ environments: ["staging"] })] }) },
    ],
    [
      "signer_unknown",
      "a signer whom no rule names",
      { policy: policyOf({ rules: [ruleOf({ identities: ["bob"] })] }) },
    ],
    ["signer_unknown", "anybody under a policy without rules", { policy: policyOf({ rules: [] }) }],
    ["signer_revoked", "a revoked signer", { policy: revoked(alice) }],
    [
      "threshold_unmet",
      "one signer where two are wanted",
      { policy: policyOf({ rules: [ruleOf({ threshold: 2 })] }) },
    ],
    [
      "threshold_unmet",
      "one signer twice where two are wanted",
      {
        policy: policyOf({ rules: [ruleOf({ threshold: 2 })] }),
        evidence: [provenBy(alice), provenBy(alice)],
      },
    ],
    [
      "allowed",
      "two signers where two are wanted",
      {
        policy: policyOf({ rules: [ruleOf({ threshold: 2 })] }),
        evidence: [provenBy(alice), provenBy(bob)],
      },
    ],
    [
      "allowed",
      "an authorised signer beside a wrong signature",
      { evidence: [invalid, provenBy(alice)] },
    ],
    [
      "allowed",
      "an authorised signer beside a revoked one",
      { policy: revoked(bob), evidence: [provenBy(bob), provenBy(alice)] },
    ],
  ];
  for (const [code, what, changes] of rows) {
    test(`says ${code} for ${what}`, () => {
      assert.equal(codeOf(changes), code);
    });
  }

  test("says threshold_unmet for one key under two names where two are wanted", () => {
    const policy = policyOf({
      identities: [identityOf("alice", alice), identityOf("alias", alice)],
      rules: [ruleOf({ identities: ["alice", "alias"], threshold: 2 })],
    });
    assert.equal(codeOf({ policy, evidence: [provenBy(alice)] }), "threshold_unmet");
  });
});

describe("decide() with certificates", () => {
  const fleet = authorityOf();
  const stranger = authorityOf();
  const pin = (authority: typeof fleet) => ({
    name: "fleet",
    certificate: authority.certificate.der.toString("base64"),
    purpose: "code_signing" as const,
  });
  const policy = policyOf({
    authorities: [pin(fleet)],
    identities: [{ name: "warmers", authority: "fleet", uri: "spiffe://fleet/author/*" }],
    rules: [ruleOf({ identities: ["warmers"] })],
  });
  const evidenceBy = (chain: Buffer[], { at = now, key = alice } = {}) => {
    const signer = { ...key, chain };
    const sent = encodeEnvelope(
      signEnvelope({ payloadType: "t", payload: Buffer.from("x") }, [signer]),
    );
    return collectEvidence(decodeEnvelope(sent), policy, at);
  };
  const codeBy = (chain: Buffer[], options?: Parameters<typeof evidenceBy>[1]) =>
    codeOf({ policy, evidence: evidenceBy(chain, options), now: options?.at ?? now });

  test("allows a certificate of the pinned authority with a matching id", () => {
    const verdict = decide(ask({ policy, evidence: evidenceBy([leafOf(fleet, alice)]) }));
    assert.equal(verdict.state === "allowed" && verdict.until, now + day);
  });

  test("says signer_unknown for an id that the pattern does not cover", () => {
    for (const uri of [
      "spiffe://fleet/reader/warmer",
      "spiffe://fleet/author/a/b",
      "spiffe://other/author/a",
    ])
      assert.equal(codeBy([leafOf(fleet, alice, { uris: [uri] })]), "signer_unknown", uri);
  });

  test("says signer_unknown for a certificate with two ids, of which one would do", () => {
    const uris = ["spiffe://fleet/author/a", "spiffe://fleet/author/b"];
    assert.equal(codeBy([leafOf(fleet, alice, { uris })]), "signer_unknown");
  });

  test("says certificate_invalid for another authority, a wrong purpose, and what is over", () => {
    assert.equal(codeBy([leafOf(stranger, alice)]), "certificate_invalid");
    assert.equal(
      codeBy([leafOf(fleet, alice, { purposes: ["client_auth"] })]),
      "certificate_invalid",
    );
    assert.equal(codeBy([leafOf(fleet, alice)], { at: now + 2 * day }), "certificate_invalid");
  });

  test("says signature_invalid when the certificate is another agent's", () => {
    assert.equal(codeBy([leafOf(fleet, bob)], { key: alice }), "signature_invalid");
  });

  test("says signer_revoked when the leaf's key or its authority's is revoked", () => {
    for (const key of [alice.publicKey.keyId, fleet.certificate.keyId]) {
      const harsh = policyOf({ ...policy.document, revoked: { keys: [key], artifacts: [] } });
      assert.equal(
        codeOf({ policy: harsh, evidence: evidenceBy([leafOf(fleet, alice)]) }),
        "signer_revoked",
      );
    }
  });

  test("counts one workload with a renewed certificate once", () => {
    const renewed = signerFrom(generateKey("ed25519"));
    const strict = policyOf({
      ...policy.document,
      rules: [ruleOf({ identities: ["warmers"], threshold: 2 })],
    });
    const evidence = [
      ...evidenceBy([leafOf(fleet, alice)]),
      ...evidenceBy([leafOf(fleet, renewed)], { key: renewed }),
    ];
    assert.deepEqual(
      evidence.map(({ state }) => state),
      ["proven", "proven"],
    );
    assert.equal(codeOf({ policy: strict, evidence }), "threshold_unmet");
  });

  test("a receipt outlives its certificate, but not its signer's revocation or another authority of that name", () => {
    const verdict = decide(ask({ policy, evidence: evidenceBy([leafOf(fleet, alice)]) }));
    assert.equal(verdict.state, "allowed");
    const receipt = makeReceipt(
      factsOf(),
      verdict as Extract<typeof verdict, { state: "allowed" }>,
    );
    const later = { wanted: wantedOf(), epochFloor: 0, now: now + 3 * day };
    assert.equal(recheckReceipt(receipt, { ...later, policy }).state, "allowed");
    const revoking = policyOf({
      ...policy.document,
      revoked: { keys: [alice.publicKey.keyId], artifacts: [] },
    });
    const renamed = policyOf({ ...policy.document, authorities: [pin(stranger)] });
    const codes = [revoking, renamed, null].map((today) => {
      const again = recheckReceipt(receipt, { ...later, policy: today });
      return again.state === "refused" ? again.code : again.state;
    });
    assert.deepEqual(codes, ["signer_revoked", "signer_unknown", "policy_missing"]);
  });
});

/** Every combination of a small world: any policy, statement, signers and time against the rules in words. */
describe("decide() over all of a small world", () => {
  const people = [alice, bob, mallory];
  const names = ["alice", "bob"];
  const world = fc.record({
    expired: fc.boolean(),
    minimumEpoch: fc.integer({ min: 0, max: 2 }),
    epochFloor: fc.integer({ min: 0, max: 2 }),
    epoch: fc.integer({ min: 0, max: 2 }),
    ageHours: fc.integer({ min: -2, max: 4 }),
    lifeHours: fc.integer({ min: 1, max: 4 }),
    revoked: fc.subarray([0, 1, 2]),
    isArtifactRevoked: fc.boolean(),
    signers: fc.uniqueArray(fc.integer({ min: 0, max: 2 })),
    withInvalid: fc.boolean(),
    rules: fc.array(
      fc.record({
        identities: fc.subarray(names, { minLength: 1 }),
        families: fc.constantFrom("*", "triton", "flashinfer"),
        models: fc.constantFrom("*", "org/*", "other"),
        threshold: fc.integer({ min: 1, max: 3 }),
      }),
      { maxLength: 3 },
    ),
    family: fc.constantFrom("triton", "flashinfer"),
    askedFamily: fc.constantFrom("triton", "flashinfer"),
  });

  test("allows exactly what the rules in words allow, and refuses everything else with a code", () => {
    fc.assert(
      fc.property(world, (w) => {
        const createdAt = now - w.ageHours * hour;
        const facts = factsOf({
          family: w.family,
          epoch: w.epoch,
          createdAt,
          expiresAt: createdAt + w.lifeHours * hour,
        });
        const policy = policyOf({
          minimumEpoch: w.minimumEpoch,
          expiresAt: timeText(w.expired ? now : now + day),
          rules: w.rules.map((rule) =>
            ruleOf({ ...rule, families: [rule.families], models: [rule.models] }),
          ),
          revoked: {
            keys: w.revoked.map((at) => people[at]?.publicKey.keyId ?? artifactId),
            artifacts: w.isArtifactRevoked ? [artifactId] : [],
          },
        });
        const evidence = w.signers.map((at): Evidence => provenBy(people[at] ?? mallory));
        const verdict = decide({
          policy,
          facts,
          evidence: w.withInvalid ? [invalid, ...evidence] : evidence,
          wanted: wantedOf({ family: w.askedFamily }),
          epochFloor: w.epochFloor,
          now,
        });
        const good = w.signers.filter((at) => !w.revoked.includes(at));
        const met = w.rules.some(
          (rule) =>
            ["*", w.family].includes(rule.families) &&
            rule.models !== "other" &&
            good.filter((at) => rule.identities.includes(names[at] ?? "")).length >= rule.threshold,
        );
        const isDue =
          !w.expired &&
          !w.isArtifactRevoked &&
          w.family === w.askedFamily &&
          w.ageHours >= 0 &&
          w.ageHours < w.lifeHours &&
          w.epoch >= Math.max(w.minimumEpoch, w.epochFloor);
        assert.equal(verdict.state === "allowed", isDue && met);
        if (verdict.state === "refused") assert.notEqual(verdict.reason, "");
        else assert.ok(verdict.until > now);
      }),
      { numRuns: 2_000, seed: 20261120 },
    );
  });

  test("never allows more when a key is revoked, time passes the end, or a signature is taken away", () => {
    const any = fc.record({
      signers: fc.uniqueArray(fc.constantFrom(0, 1)),
      threshold: fc.integer({ min: 1, max: 2 }),
      drop: fc.constantFrom(0, 1),
    });
    fc.assert(
      fc.property(any, ({ signers, threshold, drop }) => {
        const rules = [ruleOf({ threshold })];
        const evidence = signers.map((at) => provenBy(people[at] ?? mallory));
        const isAllowed = (changes: Partial<Question>) =>
          codeOf({ policy: policyOf({ rules }), evidence, ...changes }) === "allowed";
        const weaker = [
          isAllowed({ evidence: evidence.filter((_, at) => signers[at] !== drop) }),
          isAllowed({
            policy: policyOf({
              rules,
              revoked: { keys: [people[drop]?.publicKey.keyId ?? artifactId], artifacts: [] },
            }),
          }),
        ];
        for (const each of weaker) assert.ok(!each || isAllowed({}));
        assert.equal(isAllowed({ now: now + 8 * day }), false);
      }),
      { numRuns: 200, seed: 1 },
    );
  });
});
