// SPDX-License-Identifier: Apache-2.0
// Mutual TLS 1.3 between agents and with the coordinator: options for whoever opens the sockets, and
// who the other side is. Names of hosts mean nothing here: a certificate names a SPIFFE id, and the
// caller says which one it expects. OpenSSL checks the chain in the handshake; the same chain is then
// judged again by the rules of chain.ts, which are stricter.

import type { SecureContextOptions } from "node:tls";
import { RelightError } from "../errors.ts";
import { type Certificate, writeCertificatePem } from "./certificate.ts";
import { type Purpose, type ValidChain, validateChain } from "./chain.ts";
import { isSpiffeId, matchesSpiffe } from "./pattern.ts";

/** What one side shows of itself, and whom it believes. */
export interface TlsIdentity {
  /** PKCS #8. */
  readonly privateKeyPem: Buffer;
  /** In DER, the leaf first. */
  readonly chain: readonly Buffer[];
  readonly authorities: readonly Certificate[];
  /** Ids of keys that count no more, whoever certified them. */
  readonly revokedKeys: ReadonlySet<string>;
}

/** What somebody is judged by who shows a certificate now. */
export interface Judging extends Pick<TlsIdentity, "authorities" | "revokedKeys"> {
  readonly purpose: Purpose;
  readonly now: number;
}

/** The part of a peer certificate of node:tls that is used; `issuerCertificate` may be itself at the end. */
export interface PresentedCertificate {
  readonly raw: Buffer;
  readonly issuerCertificate?: PresentedCertificate;
}

export interface Peer {
  readonly uri: string;
  readonly chain: ValidChain;
}

/** For `tls.createSecureContext` and everything that takes its options. Both sides speak TLS 1.3 only. */
export function secureContextOptions(identity: TlsIdentity): SecureContextOptions {
  return {
    key: identity.privateKeyPem,
    cert: identity.chain.map(writeCertificatePem).join(""),
    ca: identity.authorities.map(({ der }) => writeCertificatePem(der)),
    minVersion: "TLSv1.3",
  };
}

/**
 * For `checkServerIdentity` of a client: undefined when the server is whom `wanted` names, an exact
 * SPIFFE id or a pattern of one.
 */
export function checkServer(
  identity: TlsIdentity,
  { wanted, now }: { readonly wanted: string; readonly now: () => number },
): (host: string, presented: PresentedCertificate) => RelightError | undefined {
  return (host, presented) => {
    try {
      const { authorities, revokedKeys } = identity;
      const judging = { authorities, revokedKeys, purpose: "server_auth", now: now() } as const;
      const { uri } = identifyPeer(presented, judging);
      if (matchesSpiffe(wanted, uri)) return undefined;
      throw new RelightError(
        "certificate_invalid",
        `Cannot trust "${host}": it is "${uri}", wanted "${wanted}"`,
      );
    } catch (error) {
      if (error instanceof RelightError) return error;
      throw error;
    }
  };
}

/** Who the other side has proved to be. @throws RelightError `certificate_invalid`, `certificate_revoked`. */
export function identifyPeer(presented: PresentedCertificate, judging: Judging): Peer {
  const chain = validateChain(listChain(presented), judging);
  const revoked = chain.keyIds.find((keyId) => judging.revokedKeys.has(keyId));
  if (revoked !== undefined) {
    throw new RelightError(
      "certificate_revoked",
      `Cannot accept certificate: the policy revokes key ${revoked}`,
    );
  }
  const [uri = "", ...others] = chain.leaf.uris;
  if (!isSpiffeId(uri) || others.length > 0) {
    throw new RelightError(
      "certificate_invalid",
      "Cannot accept certificate: want exactly one SPIFFE id in it",
    );
  }
  return { uri, chain };
}

/**
 * The fleet's authority, out of what a coordinator presented to somebody who knows only its fingerprint:
 * the first contact of a joining agent.
 * @throws RelightError `certificate_invalid` when it is not there; nothing else about it was checked.
 */
export function findAuthority(chain: readonly Certificate[], fingerprint: string): Certificate {
  const found = chain.find((certificate) => certificate.fingerprint === fingerprint);
  if (found?.isAuthority) return found;
  throw new RelightError(
    "certificate_invalid",
    "Cannot trust the coordinator: it did not show the authority that the token names",
  );
}

function listChain(presented: PresentedCertificate): Buffer[] {
  const chain: Buffer[] = [];
  // Bounded: what a stranger presents may be long, and the last one is its own issuer.
  for (let at: PresentedCertificate | undefined = presented; at?.raw && chain.length < 4; ) {
    chain.push(at.raw);
    at = at.issuerCertificate === at ? undefined : at.issuerCertificate;
  }
  return chain;
}
