// SPDX-License-Identifier: Apache-2.0
// Builders for tests of trust: keys made once, and documents whose every field has a default, so that a
// test states only what it is about.

import { randomBytes, sign } from "node:crypto";
import { AsnConvert } from "@peculiar/asn1-schema";
import { Certificate } from "@peculiar/asn1-x509";
import type { Hex32 } from "../../src/core/digest.ts";
import {
  type Authority,
  createAuthority,
  issueCertificate,
  type Leaf,
} from "../../src/trust/authority.ts";
import type { Facts, Wanted } from "../../src/trust/decide.ts";
import type { ProvenSigner } from "../../src/trust/evidence.ts";
import type { JoinToken } from "../../src/trust/join-token.ts";
import {
  generateKey,
  privateKeyPem,
  type Signer,
  signerFrom,
  writePublicKey,
} from "../../src/trust/keys.ts";
import { makePolicy, type Policy, type PolicyDocument } from "../../src/trust/policy.ts";
import { firstPolicy } from "../../src/trust/setup.ts";
import { timeText } from "../../src/trust/time.ts";
import type { TlsMaterial } from "../../src/trust/tls-material.ts";

export const now = Date.parse("2026-11-20T12:00:00.000Z");
export const hour = 3_600_000;
export const day = 24 * hour;

export const alice = signerFrom(generateKey("ed25519"));
export const bob = signerFrom(generateKey("ed25519"));
export const mallory = signerFrom(generateKey("ed25519"));
export const root = signerFrom(generateKey("ed25519"));
export const secondRoot = signerFrom(generateKey("ed25519"));

export function identityOf(name: string, signer: Signer) {
  return { name, key: writePublicKey(signer.publicKey) };
}

/** Alice and Bob, each alone, may author anything; the root signs. */
export function policyDocument(changes: Partial<PolicyDocument> = {}): PolicyDocument {
  const document = firstPolicy({
    roots: [root.publicKey],
    rootThreshold: 1,
    identities: [identityOf("alice", alice), identityOf("bob", bob)],
    now: now - hour,
    lifetimeMs: 30 * day,
  });
  return { ...document, ...changes };
}

export function policyOf(changes: Partial<PolicyDocument> = {}): Policy {
  return makePolicy(policyDocument(changes));
}

export function ruleOf(changes: Partial<PolicyDocument["rules"][number]> = {}) {
  return {
    identities: ["alice", "bob"],
    families: ["*"],
    models: ["*"],
    environments: ["*"],
    threshold: 1,
    ...changes,
  };
}

/** A certificate with something changed that the authority would never issue, signed by it all the same. */
export function reissued(
  issuer: Authority,
  der: Buffer,
  change: (certificate: Certificate) => void,
): Buffer {
  const certificate = AsnConvert.parse(der, Certificate);
  change(certificate);
  const signed = sign(
    "sha256",
    Buffer.from(AsnConvert.serialize(certificate.tbsCertificate)),
    issuer.privateKey,
  );
  certificate.signatureValue = new Uint8Array(signed).buffer;
  return Buffer.from(AsnConvert.serialize(certificate));
}

export const artifactId = "a".repeat(64) as Hex32;

export function factsOf(changes: Partial<Facts> = {}): Facts {
  return {
    artifactId,
    family: "triton",
    identity: { gpu: "sm_90", triton: "3.5.0" },
    model: "org/model",
    environment: "production",
    createdAt: now - hour,
    expiresAt: now + 7 * day,
    epoch: 0,
    ...changes,
  };
}

export function wantedOf(changes: Partial<Wanted> = {}): Wanted {
  const { family, identity, model, environment } = factsOf();
  return { artifactId, family, identity, model, environment, ...changes };
}

export function provenBy(signer: Signer, changes: Partial<ProvenSigner> = {}) {
  const { keyId } = signer.publicKey;
  return {
    state: "proven" as const,
    signer: {
      keyId,
      keyIds: [keyId],
      authority: null,
      uri: null,
      dnsNames: [],
      notAfter: null,
      ...changes,
    },
  };
}

export function authorityOf(
  changes: Partial<Parameters<typeof createAuthority>[0]> = {},
): Authority {
  return createAuthority({
    commonName: "test fleet",
    notBefore: now - day,
    notAfter: now + 365 * day,
    serial: randomBytes(16),
    pathLength: 1,
    issuer: null,
    ...changes,
  });
}

export function leafOf(authority: Authority, signer: Signer, changes: Partial<Leaf> = {}): Buffer {
  return issueCertificate(authority, {
    commonName: "warmer",
    publicKey: signer.publicKey.key,
    uris: ["spiffe://fleet/author/warmer"],
    dnsNames: [],
    addresses: [],
    purposes: ["code_signing"],
    serial: randomBytes(16),
    notBefore: now - hour,
    notAfter: now + day,
    ...changes,
  });
}

export function joinTokenOf(changes: Partial<JoinToken> = {}): JoinToken {
  return {
    id: "0123456789abcdef0123456789abcdef",
    role: "mirror",
    node: null,
    environment: "production",
    uses: 1,
    issuedAt: timeText(now),
    expiresAt: timeText(now + hour),
    certificateMs: hour,
    coordinator: "coordinator.example:8001",
    authority: "c".repeat(64) as Hex32,
    roots: { threshold: 1, keys: [writePublicKey(root.publicKey)] },
    ...changes,
  };
}

/** A fleet whose certificates count by the machine's clock, at which OpenSSL looks. */
export function liveFleet() {
  const present = Date.now();
  const span = { notBefore: present - hour, notAfter: present + day };
  const authority = authorityOf(span);
  function member(
    uri: string,
    changes: Partial<Leaf> & { readonly authority?: Authority } = {},
  ): TlsMaterial {
    const { authority: issuer = authority, ...fields } = changes;
    const key = generateKey("p256");
    const leaf = leafOf(issuer, signerFrom(key), {
      ...span,
      uris: [uri],
      purposes: ["client_auth", "server_auth"],
      ...fields,
    });
    return { key: privateKeyPem(key), chain: [leaf], authorities: [authority.certificate.der] };
  }
  return { authority, span, member };
}
