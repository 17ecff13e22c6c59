// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  alice,
  day,
  mallory,
  now,
  policyDocument,
  policyOf,
  root,
  secondRoot,
} from "../../test/support/trust.ts";
import { type Acceptance, acceptPolicy } from "./accept-policy.ts";
import { encodeEnvelope, signEnvelope } from "./envelope.ts";
import { writePublicKey } from "./keys.ts";
import { signPolicy } from "./setup.ts";
import { timeText } from "./time.ts";

const keyText = (signer: typeof root) => writePublicKey(signer.publicKey);
const acceptance: Acceptance = {
  roots: { threshold: 1, keys: [root.publicKey] },
  revokedKeys: new Set(),
  newest: { version: 0, digest: "" },
  now,
};

describe("accepting a policy", () => {
  test("acceptPolicy() accepts what the pinned root signed, and the same again", () => {
    const bytes = signPolicy(policyDocument(), [root]);
    const policy = acceptPolicy(bytes, acceptance);
    const newest = { version: policy.version, digest: policy.digest };
    assert.equal(acceptPolicy(bytes, { ...acceptance, newest }).digest, policy.digest);
  });

  test("acceptPolicy() refuses one that a stranger signed, or an author, or nobody", () => {
    for (const signers of [[mallory], [alice], []]) {
      const bytes = signPolicy(policyDocument(), signers);
      assert.throws(() => acceptPolicy(bytes, acceptance), { code: "policy_invalid" });
    }
  });

  test("acceptPolicy() refuses one whose own roots are a stranger's, though both signed", () => {
    const roots = { threshold: 2, keys: [keyText(mallory), keyText(alice)] };
    const bytes = signPolicy(policyDocument({ roots }), [root, mallory]);
    assert.throws(() => acceptPolicy(bytes, acceptance), {
      code: "policy_invalid",
      message: /its own roots/,
    });
  });

  test("acceptPolicy() refuses an older version, and another text of the same version", () => {
    const newest = { version: 5, digest: policyOf({ version: 5 }).digest };
    const older = signPolicy(policyDocument({ version: 4 }), [root]);
    const other = signPolicy(policyDocument({ version: 5, minimumEpoch: 9 }), [root]);
    for (const bytes of [older, other])
      assert.throws(() => acceptPolicy(bytes, { ...acceptance, newest }), {
        code: "policy_rollback",
      });
  });

  test("acceptPolicy() needs the old and the new roots when roots change", () => {
    const roots = { threshold: 1, keys: [keyText(secondRoot)] };
    const document = policyDocument({ version: 2, roots });
    assert.throws(() => acceptPolicy(signPolicy(document, [secondRoot]), acceptance), {
      code: "policy_invalid",
    });
    assert.throws(() => acceptPolicy(signPolicy(document, [root]), acceptance), {
      code: "policy_invalid",
    });
    const both = acceptPolicy(signPolicy(document, [root, secondRoot]), acceptance);
    assert.equal(both.roots.keys[0]?.keyId, secondRoot.publicKey.keyId);
  });

  test("acceptPolicy() holds roots to their threshold", () => {
    const two = { threshold: 2, keys: [root.publicKey, secondRoot.publicKey] };
    const roots = { threshold: 2, keys: [keyText(root), keyText(secondRoot)] };
    const document = policyDocument({ roots });
    const accept = (signers: (typeof root)[]) =>
      acceptPolicy(signPolicy(document, signers), { ...acceptance, roots: two });
    assert.throws(() => accept([root]), { code: "policy_invalid", message: /want 2/ });
    assert.equal(accept([root, secondRoot]).version, 1);
  });

  test("acceptPolicy() counts no root key that the present policy revokes", () => {
    const revokedKeys = new Set([root.publicKey.keyId]);
    const bytes = signPolicy(policyDocument(), [root]);
    assert.throws(() => acceptPolicy(bytes, { ...acceptance, revokedKeys }), {
      code: "policy_invalid",
    });
  });

  test("acceptPolicy() refuses a policy of the future and a payload of another type", () => {
    const future = policyDocument({
      issuedAt: timeText(now + day),
      expiresAt: timeText(now + 2 * day),
    });
    assert.throws(() => acceptPolicy(signPolicy(future, [root]), acceptance), {
      code: "policy_invalid",
      message: /still to come/,
    });
    const wrong = encodeEnvelope(
      signEnvelope({ payloadType: "text/plain", payload: Buffer.from("{}") }, [root]),
    );
    assert.throws(() => acceptPolicy(wrong, acceptance), {
      code: "policy_invalid",
      message: /payload type/,
    });
  });
});
