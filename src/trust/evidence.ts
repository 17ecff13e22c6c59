// SPDX-License-Identifier: Apache-2.0
// What the signatures of an envelope prove. All cryptography of a decision happens here; decide.ts
// then judges plain data, which is also what a receipt keeps.

import { z } from "zod";
import { type Hex32, isHex32 } from "../core/digest.ts";
import { asRelightError, type Code, RelightError } from "../errors.ts";
import { validateChain } from "./chain.ts";
import { type Envelope, preAuthenticationEncoding, type Signature } from "./envelope.ts";
import { isSignatureOf, type PublicKey, publicKeyFrom } from "./keys.ts";
import { isSpiffeId } from "./pattern.ts";
import type { Policy } from "./policy.ts";

const hex = z.string().refine(isHex32);
export const signerShape = z.strictObject({
  keyId: hex,
  /** Ids of every key relied on: the signer's, and those of the authorities above it. */
  keyIds: z.array(hex).min(1).max(4),
  /** Null for a bare key. */
  authority: z.string().max(64).nullable(),
  /** The SPIFFE id, when the certificate carries exactly one URI and that is it. */
  uri: z.string().max(2_048).nullable(),
  dnsNames: z.array(z.string().max(253)).max(64),
  /** When the certificates end, in Unix milliseconds; null for a bare key. */
  notAfter: z.int().nullable(),
});

/** Somebody whose signature over these bytes is genuine. Says nothing about what they may author. */
export type ProvenSigner = z.infer<typeof signerShape>;

const evidenceCodes = [
  "signature_invalid",
  "signer_revoked",
  "certificate_invalid",
  "signer_unknown",
] as const satisfies readonly Code[];
export type EvidenceCode = (typeof evidenceCodes)[number];

export type Evidence =
  | { readonly state: "proven"; readonly signer: ProvenSigner }
  | {
      readonly state: "refused";
      readonly keyId: Hex32;
      readonly code: EvidenceCode;
      readonly reason: string;
    };

/** One judgement for each signature, in order. Reads the payload's bytes, not their meaning. */
export function collectEvidence(envelope: Envelope, policy: Policy, now: number): Evidence[] {
  const bytes = preAuthenticationEncoding(envelope.payloadType, envelope.payload);
  return envelope.signatures.map((signature) => {
    try {
      const { key, signer } = identify(signature, policy, now);
      if (isSignatureOf(key, bytes, signature.bytes)) return { state: "proven", signer };
      return refused(signature, "signature_invalid", "it does not belong to these bytes");
    } catch (error) {
      const { code, message } = asRelightError(error);
      const known = evidenceCodes.find((each) => each === code);
      if (known === undefined) throw error;
      return refused(signature, known, message);
    }
  });
}

/** The key that must have signed, known before any signature is computed. */
function identify(
  { keyId, chain }: Signature,
  policy: Policy,
  now: number,
): { key: PublicKey; signer: ProvenSigner } {
  // Said before anything is proved: an id that is revoked proves nothing, whoever wrote it down.
  if (policy.revokedKeys.has(keyId))
    throw new RelightError("signer_revoked", `Cannot accept signer ${keyId}: its key is revoked`);
  const bare = policy.keys.get(keyId);
  if (bare !== undefined) {
    const signer = {
      keyId,
      keyIds: [keyId],
      authority: null,
      uri: null,
      dnsNames: [],
      notAfter: null,
    };
    return { key: bare, signer };
  }
  if (chain.length === 0)
    throw new RelightError("signer_unknown", `Cannot accept signer ${keyId}: no identity names it`);
  return identifyByChain(chain, policy, now);
}

function identifyByChain(chain: readonly Buffer[], policy: Policy, now: number) {
  let failure: unknown = new RelightError(
    "certificate_invalid",
    "Cannot accept certificate: the policy pins no authority",
  );
  for (const { name, certificate, purpose } of policy.authorities) {
    try {
      const valid = validateChain(chain, { authorities: [certificate], purpose, now });
      const { leaf, keyIds, notAfter } = valid;
      const uri = leaf.uris.length === 1 ? (leaf.uris[0] ?? "") : "";
      const signer = {
        keyId: leaf.keyId,
        keyIds: [...keyIds],
        authority: name,
        uri: isSpiffeId(uri) ? uri : null,
        dnsNames: leaf.dnsNames.slice(0, 64),
        notAfter,
      };
      return { key: signingKey(leaf.key), signer };
    } catch (error) {
      if (!(error instanceof RelightError)) throw error;
      failure = error;
    }
  }
  throw failure;
}

function signingKey(key: Parameters<typeof publicKeyFrom>[0]): PublicKey {
  try {
    return publicKeyFrom(key);
  } catch (cause) {
    throw new RelightError(
      "certificate_invalid",
      "Cannot accept certificate: its key is neither Ed25519 nor P-256",
      { cause },
    );
  }
}

function refused({ keyId }: Signature, code: EvidenceCode, reason: string): Evidence {
  return { state: "refused", keyId, code, reason };
}
