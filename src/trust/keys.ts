// SPDX-License-Identifier: Apache-2.0
// Keys and signatures: Ed25519 for everything that Relight makes, ECDSA P-256 also read because
// SPIRE and most certificate authorities issue nothing else to a workload. The algorithm follows from
// the key that a policy or a pinned authority vouches for, never from what a message claims.

import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign,
  verify,
} from "node:crypto";
import type { Hex32 } from "../core/digest.ts";
import { RelightError } from "../errors.ts";

export type Algorithm = "ed25519" | "p256";

export interface PublicKey {
  /** SHA-256 of the key's SubjectPublicKeyInfo in DER. */
  readonly keyId: Hex32;
  readonly algorithm: Algorithm;
  readonly key: KeyObject;
}

/** A private key together with what proves whose it is. Lives in the agent, never in the engine. */
export interface Signer {
  readonly publicKey: PublicKey;
  /** Certificates in DER, the signer's own first; empty when the bare key is the identity. */
  readonly chain: readonly Buffer[];
  sign(bytes: Buffer): Buffer;
}

/** A DER key of the two algorithms has 44 or 91 bytes. */
const spkiBytesMax = 256;

export function generateKey(algorithm: Algorithm): KeyObject {
  return algorithm === "ed25519"
    ? generateKeyPairSync("ed25519").privateKey
    : generateKeyPairSync("ec", { namedCurve: "prime256v1" }).privateKey;
}

export function signerFrom(privateKey: KeyObject, chain: readonly Buffer[] = []): Signer {
  const publicKey = publicKeyFrom(createPublicKey(privateKey));
  return { publicKey, chain, sign: (bytes) => signBytes(privateKey, bytes) };
}

/** @throws RelightError `key_unsafe` when the text is not an unencrypted PKCS #8 key that we use. */
export function signerFromPem(pem: Buffer): Signer {
  try {
    return signerFrom(createPrivateKey({ key: pem, format: "pem", type: "pkcs8" }));
  } catch (cause) {
    throw new RelightError(
      "key_unsafe",
      "Cannot use private key: want Ed25519 or P-256 as PKCS #8 in PEM",
      { cause },
    );
  }
}

export function privateKeyPem(privateKey: KeyObject): Buffer {
  return Buffer.from(privateKey.export({ type: "pkcs8", format: "pem" }));
}

/** @throws RelightError `policy_invalid` for a key of another kind. */
export function publicKeyFrom(key: KeyObject): PublicKey {
  const algorithm = algorithmOf(key);
  if (algorithm === null) {
    throw new RelightError(
      "policy_invalid",
      `Cannot use key of type "${key.asymmetricKeyType ?? key.type}": want Ed25519 or P-256`,
    );
  }
  return { keyId: keyIdOf(key), algorithm, key };
}

/** A public key from base64 of its SubjectPublicKeyInfo. @throws RelightError `policy_invalid`. */
export function readPublicKey(base64: string): PublicKey {
  const der = Buffer.from(base64, "base64");
  try {
    if (der.length > spkiBytesMax || der.toString("base64") !== base64) throw new Error("encoding");
    const key = createPublicKey({ key: der, format: "der", type: "spki" });
    if (!key.export({ type: "spki", format: "der" }).equals(der)) throw new Error("not DER");
    return publicKeyFrom(key);
  } catch (cause) {
    if (cause instanceof RelightError) throw cause;
    throw new RelightError(
      "policy_invalid",
      `Cannot read public key "${base64.slice(0, 100)}": want base64 of a SubjectPublicKeyInfo`,
      { cause },
    );
  }
}

export function writePublicKey({ key }: PublicKey): string {
  return key.export({ type: "spki", format: "der" }).toString("base64");
}

/** SHA-256 of the key's SubjectPublicKeyInfo, for a key of any kind. */
export function keyIdOf(key: KeyObject): Hex32 {
  const der = key.export({ type: "spki", format: "der" });
  return createHash("sha256").update(der).digest("hex") as Hex32;
}

export function isSignatureOf(publicKey: PublicKey, bytes: Buffer, signature: Buffer): boolean {
  return publicKey.algorithm === "ed25519"
    ? verify(null, bytes, publicKey.key, signature)
    : verify("sha256", bytes, { key: publicKey.key, dsaEncoding: "ieee-p1363" }, signature);
}

function signBytes(privateKey: KeyObject, bytes: Buffer): Buffer {
  return privateKey.asymmetricKeyType === "ed25519"
    ? sign(null, bytes, privateKey)
    : sign("sha256", bytes, { key: privateKey, dsaEncoding: "ieee-p1363" });
}

function algorithmOf(key: KeyObject): Algorithm | null {
  if (key.asymmetricKeyType === "ed25519") return "ed25519";
  const curve = key.asymmetricKeyDetails?.namedCurve;
  return key.asymmetricKeyType === "ec" && curve === "prime256v1" ? "p256" : null;
}
