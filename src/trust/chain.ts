// SPDX-License-Identifier: Apache-2.0
// Path validation below pinned authorities: leaf, at most one intermediate, pinned authority. What
// RFC 5280 part 6 asks for at that depth, with nothing optional: no name constraints, no policies.

import type { Hex32 } from "../core/digest.ts";
import { type Certificate, invalidCertificate, readCertificate } from "./certificate.ts";

/** Object identifiers of what a leaf may be used for (RFC 5280 part 4.2.1.12). */
export const purposes = {
  server_auth: "1.3.6.1.5.5.7.3.1",
  client_auth: "1.3.6.1.5.5.7.3.2",
  code_signing: "1.3.6.1.5.5.7.3.3",
} as const;
export type Purpose = keyof typeof purposes;

/** Authorities above the leaf. Two: an issuing authority below a pinned root. */
const depthMax = 2;

export interface ValidChain {
  readonly leaf: Certificate;
  /** The pinned one that the chain ends in. */
  readonly authority: Certificate;
  /** Ids of every key that the chain relies on, the leaf's first. */
  readonly keyIds: readonly Hex32[];
  /** When the first certificate of the chain ends, in Unix milliseconds. */
  readonly notAfter: number;
}

/**
 * @param chain DER, leaf first; the pinned authority itself may be left out.
 * @throws RelightError `certificate_invalid`, with the first offence from the leaf upwards.
 */
export function validateChain(
  chain: readonly Buffer[],
  options: {
    readonly authorities: readonly Certificate[];
    readonly purpose: Purpose;
    readonly now: number;
  },
): ValidChain {
  const [leaf, ...issuers] = chain.slice(0, depthMax + 1).map(readCertificate);
  if (leaf === undefined) return invalidCertificate("there is none");
  checkLeaf(leaf, options.purpose);
  const path: Certificate[] = [leaf];
  for (let below: Certificate = leaf; ; ) {
    checkTime(below, options.now);
    const pinned = options.authorities.find((authority) => isIssuedBy(below, authority));
    const issuer = pinned ?? issuers[path.length - 1];
    if (issuer === undefined || path.length > depthMax || !isIssuedBy(below, issuer))
      return invalidCertificate("no pinned authority issued it");
    checkAuthority(issuer, path.length - 1);
    path.push(issuer);
    if (pinned !== undefined) {
      checkTime(pinned, options.now);
      return {
        leaf,
        authority: pinned,
        keyIds: path.map(({ keyId }) => keyId),
        notAfter: Math.min(...path.map(({ notAfter }) => notAfter)),
      };
    }
    below = issuer;
  }
}

function checkLeaf(leaf: Certificate, purpose: Purpose): void {
  if (leaf.isAuthority) invalidCertificate("the leaf is an authority");
  if (!(leaf.keyUsage ?? ["digitalSignature"]).includes("digitalSignature"))
    invalidCertificate("its key usage forbids signing");
  // An absent extension would mean "anything"; here a certificate must say what it is for.
  if (!leaf.purposes?.includes(purposes[purpose]))
    invalidCertificate(`its extended key usage lacks ${purpose}`);
}

/** @param between Authorities that stand between `issuer` and the leaf. */
function checkAuthority(issuer: Certificate, between: number): void {
  if (!issuer.isAuthority) invalidCertificate("its issuer is no authority");
  if (!issuer.keyUsage?.includes("keyCertSign"))
    invalidCertificate("its issuer's key usage forbids issuing");
  if (issuer.pathLength !== null && issuer.pathLength < between)
    invalidCertificate(
      `its issuer allows ${issuer.pathLength} authorities below, found ${between}`,
    );
}

function checkTime({ notBefore, notAfter }: Certificate, now: number): void {
  if (now < notBefore)
    invalidCertificate(`it begins at ${new Date(notBefore).toISOString()}, which is still to come`);
  if (now > notAfter) invalidCertificate(`it ended at ${new Date(notAfter).toISOString()}`);
}

function isIssuedBy(certificate: Certificate, issuer: Certificate): boolean {
  return certificate.x509.checkIssued(issuer.x509) && certificate.x509.verify(issuer.key);
}
