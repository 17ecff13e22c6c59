// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { alice, bob, mallory } from "../../test/support/trust.ts";
import {
  addSignature,
  decodeEnvelope,
  encodeEnvelope,
  listSigners,
  preAuthenticationEncoding,
  signEnvelope,
} from "./envelope.ts";
import { isSignatureOf, readPublicKey } from "./keys.ts";

const payload = Buffer.from("hello world");
const payloadType = "http://example.com/HelloWorld";
const keys = [alice.publicKey, bob.publicKey];

function withField(change: (envelope: Record<string, unknown>) => void): Buffer {
  const bytes = encodeEnvelope(signEnvelope({ payloadType, payload }, [alice]));
  const json = JSON.parse(bytes.toString()) as Record<string, unknown>;
  change(json);
  return Buffer.from(JSON.stringify(json));
}

describe("envelope", () => {
  test("preAuthenticationEncoding() gives the bytes of the DSSE specification's example", () => {
    assert.equal(
      preAuthenticationEncoding(payloadType, payload).toString(),
      "DSSEv1 29 http://example.com/HelloWorld 11 hello world",
    );
  });

  test("isSignatureOf() accepts the signature of the DSSE specification's example", () => {
    // protocol.md, "Test Vectors": ECDSA over P-256 with SHA-256, coordinates turned into SPKI.
    const key = readPublicKey(
      "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZ805D3eqNZywjCI19lInBJOp7YMrCrzAH3CVTAOQ0jgMeCvVTiaRJaRPRDOv8UMs6U4SvKc6pnrIDOoSYI3fdA==",
    );
    const signature = Buffer.from(
      "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==",
      "base64",
    );
    assert.equal(
      isSignatureOf(key, preAuthenticationEncoding(payloadType, payload), signature),
      true,
    );
    assert.equal(isSignatureOf(key, preAuthenticationEncoding("other", payload), signature), false);
  });

  test("preAuthenticationEncoding() counts bytes, not characters", () => {
    assert.equal(
      preAuthenticationEncoding("typé", Buffer.from("é")).toString(),
      "DSSEv1 5 typé 2 é",
    );
  });

  test("a signature does not carry over to another type that makes the same concatenation", () => {
    const signed = signEnvelope({ payloadType: "a b", payload: Buffer.from("c") }, [alice]);
    const moved = { ...signed, payloadType: "a", payload: Buffer.from("b c") };
    assert.equal(listSigners(signed, keys).length, 1);
    assert.equal(listSigners(moved, keys).length, 0);
  });

  test("decodeEnvelope() gives back what encodeEnvelope() was given", () => {
    const signed = signEnvelope({ payloadType, payload }, [alice, bob]);
    assert.deepEqual(decodeEnvelope(encodeEnvelope(signed)), signed);
  });

  test("decodeEnvelope() reads the URL-safe alphabet and drops fields it does not know", () => {
    const odd = Buffer.from([0xfb, 0xff, 0xfe]);
    const bytes = withField((json) => {
      json["payload"] = odd.toString("base64url");
      json["future"] = { any: "thing" };
    });
    assert.deepEqual(decodeEnvelope(bytes).payload, odd);
  });

  test("listSigners() counts each genuine signer once and nobody else", () => {
    const signed = signEnvelope({ payloadType, payload }, [alice, mallory]);
    assert.deepEqual(listSigners(signed, keys), [alice.publicKey]);
    const swapped = {
      ...signed,
      signatures: signed.signatures.map((each) => ({ ...each, keyId: bob.publicKey.keyId })),
    };
    assert.deepEqual(listSigners(swapped, keys), []);
  });

  test("addSignature() replaces an older signature by the same key", () => {
    const signed = signEnvelope({ payloadType, payload }, [alice]);
    assert.equal(addSignature(signed, alice).signatures.length, 1);
    assert.equal(addSignature(signed, bob).signatures.length, 2);
  });

  const malformed: [string, Buffer][] = [
    ["no bytes", Buffer.alloc(0)],
    ["bytes that are not UTF-8", Buffer.from([0x22, 0xff, 0x22])],
    ["a list", Buffer.from("[]")],
    ["deep nesting", Buffer.from("[".repeat(100_000))],
    ["no payload", withField((json) => delete json["payload"])],
    ["a number as payload", withField((json) => (json["payload"] = 7))],
    ["a payload with a space", withField((json) => (json["payload"] = "aGVs bG8="))],
    ["a payload with bits beyond its end", withField((json) => (json["payload"] = "aGVsbG9="))],
    ["an empty type", withField((json) => (json["payloadType"] = ""))],
    ["a type with half a character", withField((json) => (json["payloadType"] = "\ud800"))],
    ["signatures that are no list", withField((json) => (json["signatures"] = {}))],
    [
      "seventeen signatures",
      withField(
        (json) => (json["signatures"] = Array(17).fill({ keyid: "a".repeat(64), sig: "AA==" })),
      ),
    ],
    [
      "two signatures by one key",
      withField(
        (json) => (json["signatures"] = Array(2).fill({ keyid: "a".repeat(64), sig: "AA==" })),
      ),
    ],
    [
      "a key id of another length",
      withField((json) => (json["signatures"] = [{ keyid: "aa", sig: "AA==" }])),
    ],
    [
      "four certificates",
      withField(
        (json) =>
          (json["signatures"] = [
            { keyid: "a".repeat(64), sig: "AA==", x5c: Array(4).fill("AA==") },
          ]),
      ),
    ],
  ];
  for (const [what, bytes] of malformed) {
    test(`decodeEnvelope() refuses ${what}`, () => {
      assert.throws(() => decodeEnvelope(bytes), { code: "envelope_invalid" });
    });
  }

  test("decodeEnvelope() refuses more payload than its reader wants", () => {
    const bytes = encodeEnvelope(signEnvelope({ payloadType, payload: Buffer.alloc(65) }, [alice]));
    assert.equal(decodeEnvelope(bytes, 65).payload.length, 65);
    assert.throws(() => decodeEnvelope(bytes, 64), { code: "envelope_invalid" });
  });
});
