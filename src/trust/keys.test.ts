// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { createPrivateKey, generateKeyPairSync } from "node:crypto";
import { describe, test } from "node:test";
import {
  generateKey,
  isSignatureOf,
  privateKeyPem,
  publicKeyFrom,
  readPublicKey,
  signerFrom,
  signerFromPem,
  writePublicKey,
} from "./keys.ts";

/** RFC 8032 part 7.1: seed, public key, message, signature. */
const vectors = [
  {
    seed: "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    key: "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    message: "",
    signature:
      "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
  },
  {
    seed: "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    key: "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    message: "72",
    signature:
      "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
  },
  {
    seed: "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    key: "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    message: "af82",
    signature:
      "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
  },
];

describe("keys", () => {
  for (const { seed, key, message, signature } of vectors) {
    test(`sign() makes the signature of RFC 8032 for message "${message}"`, () => {
      const der = Buffer.from(`302e020100300506032b657004220420${seed}`, "hex");
      const signer = signerFrom(createPrivateKey({ key: der, format: "der", type: "pkcs8" }));
      const bytes = Buffer.from(message, "hex");
      assert.equal(
        writePublicKey(signer.publicKey).slice(16),
        Buffer.from(key, "hex").toString("base64"),
      );
      assert.equal(signer.sign(bytes).toString("hex"), signature);
      assert.equal(isSignatureOf(signer.publicKey, bytes, Buffer.from(signature, "hex")), true);
      assert.equal(
        isSignatureOf(signer.publicKey, Buffer.from("00"), Buffer.from(signature, "hex")),
        false,
      );
    });
  }

  for (const algorithm of ["ed25519", "p256"] as const) {
    test(`a ${algorithm} key survives PEM and base64, and what it signs verifies`, () => {
      const privateKey = generateKey(algorithm);
      const signer = signerFromPem(privateKeyPem(privateKey));
      const key = readPublicKey(writePublicKey(signer.publicKey));
      assert.equal(key.keyId, signer.publicKey.keyId);
      assert.match(key.keyId, /^[0-9a-f]{64}$/);
      const signature = signer.sign(Buffer.from("bytes"));
      assert.equal(signature.length, 64);
      assert.equal(isSignatureOf(key, Buffer.from("bytes"), signature), true);
      assert.equal(isSignatureOf(key, Buffer.from("bytes"), signature.subarray(1)), false);
    });
  }

  test("publicKeyFrom() refuses every kind of key but the two", () => {
    const others = [
      generateKeyPairSync("rsa", { modulusLength: 2_048 }).publicKey,
      generateKeyPairSync("ec", { namedCurve: "secp384r1" }).publicKey,
      generateKeyPairSync("ed448").publicKey,
      generateKeyPairSync("x25519").publicKey,
    ];
    for (const other of others)
      assert.throws(() => publicKeyFrom(other), { code: "policy_invalid" });
  });

  test("readPublicKey() refuses text that is not exactly one key", () => {
    const good = writePublicKey(signerFrom(generateKey("ed25519")).publicKey);
    const padded = Buffer.concat([Buffer.from(good, "base64"), Buffer.of(0)]).toString("base64");
    for (const text of [
      "",
      "AAAA",
      ` ${good}`,
      `${good}\n`,
      padded,
      good.slice(4),
      "x".repeat(9_999),
    ]) {
      assert.throws(() => readPublicKey(text), { code: "policy_invalid" }, text.slice(0, 60));
    }
  });

  test("signerFromPem() refuses an encrypted key, a public key and text", () => {
    const pair = generateKeyPairSync("ed25519");
    const encrypted = pair.privateKey.export({
      type: "pkcs8",
      format: "pem",
      cipher: "aes-256-cbc",
      passphrase: "secret",
    });
    const open = pair.publicKey.export({ type: "spki", format: "pem" });
    for (const text of [encrypted, open, "text", ""]) {
      assert.throws(() => signerFromPem(Buffer.from(text)), { code: "key_unsafe" });
    }
  });
});
