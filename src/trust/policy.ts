// SPDX-License-Identifier: Apache-2.0
// The trust policy: who may author what. A document that people can read and edit, in canonical JSON
// inside an envelope that its own roots sign. This file owns its shape and its inner consistency;
// accept-policy.ts decides whether one may replace another, decide.ts what one allows.

import { z } from "zod";
import { canonicalJson, type Json } from "../core/canonical-json.ts";
import { blake3Hex, type Hex32, isHex32 } from "../core/digest.ts";
import { MiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import { type Certificate, readCertificate } from "./certificate.ts";
import { type PublicKey, readPublicKey } from "./keys.ts";
import { isDnsPattern, isSpiffePattern } from "./pattern.ts";
import { timeMs, timeShape } from "./time.ts";

export const policyFormat = "relight.policy.v1";
export const policyPayloadType = "application/vnd.relight.policy.v1+json";
export const policyBytesMax = 4 * MiB;

const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/);
const word = z.string().min(1).max(512);
const hex = z.string().refine(isHex32, "want 64 hex characters");
const base64 = (bytesMax: number) => z.string().max(4 * Math.ceil(bytesMax / 3));
const identityShape = z.union([
  z.strictObject({ name, key: base64(256) }),
  z.strictObject({ name, authority: name, uri: z.string().max(2_048).refine(isSpiffePattern) }),
  z.strictObject({ name, authority: name, dns: z.string().max(253).refine(isDnsPattern) }),
]);
const policyShape = z.strictObject({
  format: z.literal(policyFormat),
  version: z.int().min(1),
  issuedAt: timeShape,
  expiresAt: timeShape,
  roots: z.strictObject({
    threshold: z.int().min(1).max(16),
    keys: z.array(base64(256)).min(1).max(16),
  }),
  authorities: z
    .array(
      z.strictObject({
        name,
        certificate: base64(16_384),
        purpose: z.enum(["code_signing", "client_auth"]),
      }),
    )
    .max(16),
  identities: z.array(identityShape).max(1_024),
  rules: z
    .array(
      z.strictObject({
        identities: z.array(name).min(1).max(256),
        families: z.array(word).min(1).max(64),
        models: z.array(word).min(1).max(256),
        environments: z.array(word).min(1).max(64),
        threshold: z.int().min(1).max(16),
      }),
    )
    .max(256),
  minimumEpoch: z.int().min(0),
  authoredAfter: timeShape.nullable(),
  revoked: z.strictObject({
    keys: z.array(hex).max(10_000),
    artifacts: z.array(hex).max(10_000),
  }),
});

/** The document as it is written and signed. */
export type PolicyDocument = z.infer<typeof policyShape>;
export type Identity = PolicyDocument["identities"][number];
export type Rule = PolicyDocument["rules"][number];

/** A key that may sign policies, k of n. */
export interface Roots {
  readonly threshold: number;
  readonly keys: readonly PublicKey[];
}

export interface PinnedAuthority {
  readonly name: string;
  readonly certificate: Certificate;
  readonly purpose: "code_signing" | "client_auth";
}

/** A document whose inner consistency was checked, with what it names in usable form. */
export interface Policy {
  readonly document: PolicyDocument;
  /** BLAKE3 of its canonical bytes. */
  readonly digest: Hex32;
  readonly version: number;
  /** Unix milliseconds. */
  readonly issuedAt: number;
  readonly expiresAt: number;
  readonly roots: Roots;
  readonly authorities: readonly PinnedAuthority[];
  /** Every bare key that an identity names, by its id. */
  readonly keys: ReadonlyMap<string, PublicKey>;
  /** What proves an identity: the id of its own key, or of the pinned authority's. By identity's name. */
  readonly anchors: ReadonlyMap<string, Hex32>;
  readonly revokedKeys: ReadonlySet<string>;
  readonly revokedArtifacts: ReadonlySet<string>;
}

export function encodePolicy(document: PolicyDocument): Buffer {
  return Buffer.from(canonicalJson(document as Json), "utf8");
}

/**
 * A policy from the payload of an envelope. Who signed it is not looked at here.
 * @throws RelightError `policy_invalid`.
 */
export function decodePolicy(bytes: Buffer): Policy {
  if (bytes.length > policyBytesMax)
    invalidPolicy(`${bytes.length} bytes, want at most ${policyBytesMax}`);
  const result = policyShape.safeParse(parseJson(bytes));
  if (!result.success) {
    const issue = result.error.issues[0];
    return invalidPolicy(`${issue?.path.join(".") ?? ""}: ${issue?.message ?? "wrong shape"}`);
  }
  const policy = makePolicy(result.data);
  if (!encodePolicy(result.data).equals(bytes)) invalidPolicy("its spelling is not canonical");
  return policy;
}

/** @throws RelightError `policy_invalid` when the document contradicts itself. */
export function makePolicy(document: PolicyDocument): Policy {
  const roots = { ...document.roots, keys: document.roots.keys.map(readPublicKey) };
  const revokedKeys = new Set(document.revoked.keys);
  checkRoots(roots, revokedKeys);
  const issuedAt = timeMs(document.issuedAt);
  const expiresAt = timeMs(document.expiresAt);
  if (expiresAt <= issuedAt) invalidPolicy("it ends before it begins");
  checkNames(document);
  const authorities = document.authorities.map(readAuthority);
  const keys = new Map<string, PublicKey>();
  const anchors = new Map<string, Hex32>();
  for (const identity of document.identities) {
    if ("key" in identity) {
      const key = readPublicKey(identity.key);
      keys.set(key.keyId, key);
      anchors.set(identity.name, key.keyId);
    } else {
      const pinned = authorities.find((authority) => authority.name === identity.authority);
      if (pinned !== undefined) anchors.set(identity.name, pinned.certificate.keyId);
    }
  }
  return {
    document,
    digest: blake3Hex(encodePolicy(document)),
    version: document.version,
    issuedAt,
    expiresAt,
    roots,
    authorities,
    keys,
    anchors,
    revokedKeys,
    revokedArtifacts: new Set(document.revoked.artifacts),
  };
}

export function invalidPolicy(reason: string): never {
  throw new RelightError("policy_invalid", `Cannot accept policy: ${reason}`);
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new RelightError("policy_invalid", "Cannot read policy: it is not JSON in UTF-8", {
      cause,
    });
  }
}

function checkRoots(roots: Roots, revokedKeys: ReadonlySet<string>): void {
  const ids = new Set(roots.keys.map(({ keyId }) => keyId));
  if (ids.size < roots.keys.length) invalidPolicy("a root key is repeated");
  if (roots.threshold > ids.size)
    invalidPolicy(`its roots' threshold is ${roots.threshold} of ${ids.size} keys`);
  const revoked = [...ids].find((id) => revokedKeys.has(id));
  if (revoked !== undefined) invalidPolicy(`its root key ${revoked} is revoked`);
}

/** Names are distinct, and whatever is referred to exists: a typing error must not widen a rule. */
function checkNames({ identities, authorities, rules }: PolicyDocument): void {
  const identityNames = new Set(identities.map((identity) => identity.name));
  const authorityNames = new Set(authorities.map((authority) => authority.name));
  if (identityNames.size < identities.length) invalidPolicy("an identity's name is repeated");
  if (authorityNames.size < authorities.length) invalidPolicy("an authority's name is repeated");
  for (const identity of identities) {
    if ("authority" in identity && !authorityNames.has(identity.authority))
      invalidPolicy(`identity "${identity.name}" names no authority of the policy`);
  }
  for (const rule of rules) {
    const missing = rule.identities.find((named) => !identityNames.has(named));
    if (missing !== undefined) invalidPolicy(`a rule names "${missing}", which is no identity`);
  }
}

function readAuthority(authority: PolicyDocument["authorities"][number]): PinnedAuthority {
  const der = Buffer.from(authority.certificate, "base64");
  try {
    const certificate = readCertificate(der);
    if (!certificate.isAuthority) invalidPolicy(`authority "${authority.name}" is none`);
    return { name: authority.name, purpose: authority.purpose, certificate };
  } catch (cause) {
    if (!(cause instanceof RelightError)) throw cause;
    throw new RelightError(
      "policy_invalid",
      `Cannot accept policy: authority "${authority.name}": ${cause.message}`,
      { cause },
    );
  }
}
