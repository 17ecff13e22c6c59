// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  alice,
  bob,
  day,
  factsOf as factsLike,
  hour,
  mallory,
  now,
  policyOf,
  ruleOf,
} from "../../test/support/trust.ts";
import { canonicalJson } from "../core/canonical-json.ts";
import { blake3Hex, chunkedDigest, wholeDigest } from "../core/digest.ts";
import { chunkBytes } from "../core/pieces.ts";
import { addSignature, decodeEnvelope, encodeEnvelope, signEnvelope } from "../trust/envelope.ts";
import { encodeManifest, type Manifest } from "./manifest.ts";
import {
  type Authorship,
  decodeStatement,
  encodeStatement,
  factsOf,
  signStatement,
  statementPayloadType,
  type Verification,
  verifyStatement,
} from "./statement.ts";

const hashes = ["one", "two"].map((text) => blake3Hex(Buffer.from(text)));
const [first = blake3Hex(Buffer.alloc(0)), second = first] = hashes;
const manifest: Manifest = {
  family: "triton",
  files: [
    {
      path: "a/kernel.so",
      mode: 0o755,
      size: 3,
      form: "plain",
      digest: wholeDigest(first),
      chunks: [],
    },
    {
      path: "b/__grp__k.json",
      mode: 0o644,
      size: 9,
      form: "rooted",
      digest: wholeDigest(second),
      chunks: [],
    },
    {
      path: "big.bin",
      mode: 0o644,
      size: chunkBytes + 1,
      form: "plain",
      digest: chunkedDigest([first, second]),
      chunks: [first, second],
    },
  ],
};
const { artifactId } = encodeManifest(manifest);
const { identity, model, environment } = factsLike();
const authorship: Authorship = {
  identity,
  model,
  environment,
  producer: { replica: "vllm-0", relight: "0.1.0" },
  coverage: ["health"],
  createdAt: now - hour,
  expiresAt: now + 7 * day,
  epoch: 0,
};
const options: Verification = {
  policy: policyOf(),
  wanted: { artifactId, family: "triton", identity, model, environment },
  epochFloor: 0,
  now,
};
const payload = encodeStatement({ manifest: encodeManifest(manifest), authorship });
const envelope = signStatement({ manifest, authorship }, [alice]);

/** A statement changed after sealing and signed again, so that only its content can betray it. */
function resigned(change: (text: string) => string): Buffer {
  const changed = Buffer.from(change(payload.toString()));
  assert.notDeepEqual(changed, payload, "the change changes something");
  return encodeEnvelope(
    signEnvelope({ payloadType: statementPayloadType, payload: changed }, [alice]),
  );
}

describe("statement", () => {
  test("decodeStatement() gives back the manifest, its id and all that the author said", () => {
    const statement = decodeStatement(payload);
    assert.deepEqual(statement.manifest, encodeManifest(manifest));
    assert.deepEqual(statement.authorship, authorship);
    assert.equal(factsOf(statement).artifactId, artifactId);
  });

  test("a file's modification time is signed with it", () => {
    const [one, ...others] = manifest.files;
    assert.ok(one !== undefined);
    const timed = encodeManifest({ ...manifest, files: [{ ...one, modifiedMs: 7 }, ...others] });
    const bytes = encodeStatement({ manifest: timed, authorship });
    assert.deepEqual(decodeStatement(bytes).manifest, timed);
    assert.equal(canonicalJson(JSON.parse(bytes.toString())), bytes.toString());
  });

  test("a statement is an in-toto Statement v1 whose subjects are the files", () => {
    const json = JSON.parse(payload.toString());
    assert.equal(json._type, "https://in-toto.io/Statement/v1");
    assert.deepEqual(json.subject[0], {
      name: "a/kernel.so",
      digest: { blake3: first },
      annotations: { size: 3, mode: 0o755, form: "plain", chunks: [] },
    });
  });

  test("encodeStatement() writes canonical JSON", () => {
    assert.equal(canonicalJson(JSON.parse(payload.toString())), payload.toString());
  });

  test("verifyStatement() allows the original and, byte for byte, what a mirror relays", () => {
    const bytes = encodeEnvelope(envelope);
    const verified = verifyStatement(bytes, options);
    assert.deepEqual(
      verified.verdict.signers.map(({ keyId }) => keyId),
      [alice.publicKey.keyId],
    );
    assert.equal(verified.manifest.artifactId, artifactId);
    assert.deepEqual(verifyStatement(encodeEnvelope(decodeEnvelope(bytes)), options), verified);
  });

  test("verifyStatement() allows a second signer's signature to be added on the way", () => {
    const policy = policyOf({ rules: [ruleOf({ threshold: 2 })] });
    assert.throws(() => verifyStatement(encodeEnvelope(envelope), { ...options, policy }), {
      code: "threshold_unmet",
    });
    const both = encodeEnvelope(addSignature(envelope, bob));
    assert.equal(verifyStatement(both, { ...options, policy }).verdict.signers.length, 2);
  });

  const refusals: [string, string, Buffer, Partial<Verification>][] = [
    ["signature_missing", "no signature", encodeEnvelope({ ...envelope, signatures: [] }), {}],
    [
      "signer_unknown",
      "a stranger's signature",
      encodeEnvelope(signStatement({ manifest, authorship }, [mallory])),
      {},
    ],
    [
      "signature_invalid",
      "a signature under another's name",
      encodeEnvelope({
        ...envelope,
        signatures: signStatement({ manifest, authorship }, [mallory]).signatures.map((each) => ({
          ...each,
          keyId: alice.publicKey.keyId,
        })),
      }),
      {},
    ],
    [
      "signature_invalid",
      "one changed byte",
      encodeEnvelope({
        ...envelope,
        payload: Buffer.from(payload.toString().replace("vllm-0", "vllm-1")),
      }),
      {},
    ],
    [
      "signer_revoked",
      "a key revoked since",
      encodeEnvelope(envelope),
      { policy: policyOf({ revoked: { keys: [alice.publicKey.keyId], artifacts: [] } }) },
    ],
    ["policy_missing", "no policy", encodeEnvelope(envelope), { policy: null }],
    ["policy_expired", "a frozen policy", encodeEnvelope(envelope), { now: now + 90 * day }],
    [
      "statement_mismatch",
      "another artifact than the one asked for",
      encodeEnvelope(envelope),
      { wanted: { ...options.wanted, artifactId: "b".repeat(64) } },
    ],
    ["statement_replayed", "an epoch that is over", encodeEnvelope(envelope), { epochFloor: 1 }],
    [
      "manifest_invalid",
      "an id that its files do not make",
      resigned((text) => text.replace(artifactId, "0".repeat(64))),
      {},
    ],
    [
      "manifest_invalid",
      "right bytes under another path",
      resigned((text) => text.replace("a/kernel.so", "a/kernel2.so")),
      {},
    ],
    [
      "manifest_invalid",
      "setuid bits",
      resigned((text) => text.replace(`"mode":${0o755}`, `"mode":${0o4755}`)),
      {},
    ],
    [
      "manifest_invalid",
      "a chunk left out",
      resigned((text) => text.replace(`"${first}","${second}"`, `"${first}"`)),
      {},
    ],
    [
      "manifest_invalid",
      "a field nobody knows",
      resigned((text) => text.replace('"epoch":0', '"epoch":0,"trusted":true')),
      {},
    ],
    [
      "manifest_invalid",
      "a field given twice",
      resigned((text) => text.replace('"epoch":0', '"epoch":9,"epoch":0')),
      {},
    ],
    [
      "manifest_invalid",
      "an end before its beginning",
      resigned((text) => text.replace(/"expiresAt":"2026/, '"expiresAt":"2025')),
      {},
    ],
  ];
  for (const [code, what, bytes, changes] of refusals) {
    test(`verifyStatement() says ${code} for ${what}`, () => {
      assert.throws(() => verifyStatement(bytes, { ...options, ...changes }), { code });
    });
  }

  test("verifyStatement() says path_unsafe for an authorised signer's path out of the root", () => {
    const hostile = {
      ...manifest,
      files: [{ ...manifest.files[0], path: "../x.so" } as Manifest["files"][number]],
    };
    const id = encodeManifest(hostile).artifactId;
    const bytes = encodeEnvelope(signStatement({ manifest: hostile, authorship }, [alice]));
    assert.throws(
      () => verifyStatement(bytes, { ...options, wanted: { ...options.wanted, artifactId: id } }),
      { code: "path_unsafe" },
    );
  });

  test("verifyStatement() reads no payload of another type, though an author signed it", () => {
    const bytes = encodeEnvelope(
      signEnvelope({ payloadType: "application/json", payload }, [alice]),
    );
    assert.throws(() => verifyStatement(bytes, options), {
      code: "manifest_invalid",
      message: /payload type/,
    });
  });

  test("encodeStatement() refuses what no verifier would accept", () => {
    const sealed = encodeManifest(manifest);
    for (const change of [{ epoch: -1 }, { model: "m".repeat(600) }, { identity: { "a b": "c" } }])
      assert.throws(
        () => encodeStatement({ manifest: sealed, authorship: { ...authorship, ...change } }),
        { code: "manifest_invalid" },
      );
  });
});
