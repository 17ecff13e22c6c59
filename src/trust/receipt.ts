// SPDX-License-Identifier: Apache-2.0
// What is kept of a decision beside an installation, so that the next start need not hash the files
// again and still asks the policy of that day. A receipt allows nothing by itself.

import { z } from "zod";
import { decide, type Facts, factsShape, type Verdict, type Wanted } from "./decide.ts";
import { type ProvenSigner, signerShape } from "./evidence.ts";
import type { Policy } from "./policy.ts";

export const trustReceiptShape = z.strictObject({
  facts: factsShape,
  signers: z.array(signerShape).min(1).max(16),
  /** Of the policy that allowed the installation. */
  policyVersion: z.int().min(1),
});
export type TrustReceipt = z.infer<typeof trustReceiptShape>;

export function makeReceipt(
  facts: Facts,
  allowed: { readonly signers: readonly ProvenSigner[]; readonly policyVersion: number },
): TrustReceipt {
  return { facts, signers: [...allowed.signers], policyVersion: allowed.policyVersion };
}

/**
 * The decision of today on an installation of an earlier day. Revocations, rules, epochs and the
 * statement's own end count; that a certificate has ended since does not, for it was valid when this
 * node checked it, and short-lived certificates would otherwise undo every restart.
 */
export function recheckReceipt(
  receipt: TrustReceipt,
  today: {
    readonly policy: Policy | null;
    readonly wanted: Wanted;
    readonly epochFloor: number;
    readonly now: number;
  },
): Verdict {
  const evidence = receipt.signers.map((signer) => ({
    state: "proven" as const,
    signer: { ...signer, notAfter: null },
  }));
  return decide({ ...today, facts: receipt.facts, evidence });
}
