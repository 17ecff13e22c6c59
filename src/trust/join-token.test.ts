// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  alice,
  authorityOf,
  day,
  hour,
  joinTokenOf,
  mallory,
  now,
  root,
} from "../../test/support/trust.ts";
import { validateChain } from "./chain.ts";
import { enrolByToken, readEnrolRequest, writeEnrolRequest } from "./enrol.ts";
import { decodeEnvelope, encodeEnvelope } from "./envelope.ts";
import { readJoinToken, verifyJoinToken, writeJoinToken } from "./join-token.ts";
import { generateKey, signerFrom } from "./keys.ts";
import { callerFromUri } from "./roles.ts";
import { countUse } from "./token-uses.ts";

const authority = authorityOf();
const agent = signerFrom(generateKey("p256"));
const issuers = [root.publicKey];
const text = writeJoinToken(joinTokenOf(), root);

describe("join token", () => {
  test("verifyJoinToken() reads what the operator's key signed, and readJoinToken() the same", () => {
    assert.deepEqual(verifyJoinToken(text, { issuers, now }), joinTokenOf());
    assert.deepEqual(readJoinToken(`${text}\n`), joinTokenOf());
  });

  test("verifyJoinToken() refuses what a stranger signed, what has ended and what is still to come", () => {
    const refused: [string, number][] = [
      [writeJoinToken(joinTokenOf(), mallory), now],
      [text, now + day],
      [text, now - hour],
    ];
    for (const [token, at] of refused)
      assert.throws(() => verifyJoinToken(token, { issuers, now: at }), { code: "token_invalid" });
  });

  test("verifyJoinToken() refuses a token of which any character was changed", () => {
    for (let at = 0; at < text.length; at += 7) {
      const other = text[at] === "A" ? "B" : "A";
      const changed = text.slice(0, at) + other + text.slice(at + 1);
      assert.throws(() => verifyJoinToken(changed, { issuers, now }), { code: "token_invalid" });
    }
  });

  test("a refusal never repeats the token", () => {
    assert.throws(
      () => verifyJoinToken(text.slice(0, -3), { issuers, now }),
      (error: Error) => !error.message.includes(text.slice(20, 60)),
    );
  });

  test("countUse() gives a token as many uses as it says, and forgets tokens that ended", () => {
    const token = joinTokenOf({ uses: 2 });
    const once = countUse(new Map([["old", { used: 1, expiresAt: now - 1 }]]), token, now);
    const twice = countUse(once, token, now);
    assert.deepEqual([...once.keys()], [token.id]);
    assert.throws(() => countUse(twice, token, now), { code: "token_invalid", message: /2 of 2/ });
  });
});

describe("enrolment", () => {
  const fleet = {
    authority,
    trustDomain: "fleet",
    issuers,
    uses: new Map(),
    serial: Buffer.alloc(16, 7),
    now,
  };

  test("enrolByToken() gives a certificate for the agent's own key, with role and name as its id", () => {
    const request = readEnrolRequest(writeEnrolRequest("node-7", agent, text));
    const { certificate, caller, uses } = enrolByToken(request, fleet);
    const options = { authorities: [authority.certificate], now };
    for (const purpose of ["client_auth", "server_auth"] as const) {
      const { leaf } = validateChain([certificate], { ...options, purpose });
      assert.equal(leaf.keyId, agent.publicKey.keyId);
      assert.deepEqual(callerFromUri("fleet", leaf.uris[0] ?? ""), caller);
      assert.deepEqual(leaf.dnsNames, []);
      assert.equal(leaf.notAfter, now + hour);
    }
    assert.throws(() => validateChain([certificate], { ...options, purpose: "code_signing" }));
    assert.deepEqual(caller, { role: "mirror", name: "node-7" });
    assert.throws(() => enrolByToken(request, { ...fleet, uses }), { code: "token_invalid" });
  });

  test("readEnrolRequest() refuses a key that its sender does not hold", () => {
    const mine = decodeEnvelope(writeEnrolRequest("node-7", agent, text));
    const theirs = decodeEnvelope(writeEnrolRequest("node-7", alice, text));
    const mixed = encodeEnvelope({ ...theirs, signatures: mine.signatures });
    assert.throws(() => readEnrolRequest(mixed), { code: "signature_invalid" });
  });

  test("readEnrolRequest() refuses a name that would be more than one segment of an id", () => {
    for (const name of ["a/b", "..", "", "a b", "../operator/x", "é", "a".repeat(129)])
      assert.throws(
        () => readEnrolRequest(writeEnrolRequest(name, agent, text)),
        { code: "request_invalid" },
        name,
      );
  });
});
