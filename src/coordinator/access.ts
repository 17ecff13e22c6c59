// SPDX-License-Identifier: Apache-2.0
// Who calls the coordinator and what that caller may do. Where TLS is spoken a caller proves who it is
// by its certificate, or by a bearer token when it has none; on loopback nobody has to.

import { createHash } from "node:crypto";
import { RelightError } from "../errors.ts";
import { type BearerTokens, findBearer } from "../trust/bearer.ts";
import { authorise, type Call, type Caller, callerUri } from "../trust/roles.ts";
import { identifyPeer, type PresentedCertificate, type TlsIdentity } from "../trust/tls.ts";
import { type Member, memberNamed } from "../trust/tls-material.ts";

/** What came with a call. */
export interface Presented {
  readonly certificate: PresentedCertificate | null;
  /** The metadata field `authorization`; null when absent. */
  readonly authorization: string | null;
}

/** A caller whose role allows the call. */
export interface Admitted {
  readonly caller: Caller;
  /** Of the key that the caller proved; null for a bearer token. */
  readonly keyId: string | null;
  /** What is told to others about records of this caller. */
  readonly uri: string;
}

export interface Access {
  /**
   * Null where nobody has to prove anything.
   * @throws RelightError `unauthenticated`, `certificate_invalid`, `certificate_revoked`,
   *   `token_invalid`, `role_denied`.
   */
  admit(presented: Presented, call: Call): Admitted | null;
}

/** For a coordinator that listens on loopback without TLS. */
export const openAccess: Access = { admit: () => null };

/** Certificates whose chains were judged lately; more than this many members are judged again. */
const judgedMax = 10_000;

export class FleetAccess implements Access {
  readonly #trustDomain: string;
  readonly #now: () => number;
  readonly #judged = new Map<string, Member & { readonly keyId: string }>();
  #identity: TlsIdentity;
  #tokens: BearerTokens = { entries: [] };
  #revokedKeys: ReadonlySet<string> = new Set();

  constructor(options: { identity: TlsIdentity; trustDomain: string; now: () => number }) {
    this.#identity = options.identity;
    this.#trustDomain = options.trustDomain;
    this.#now = options.now;
  }

  renew(identity: TlsIdentity): void {
    this.#identity = identity;
    this.#judged.clear();
  }

  /** Of every key, whoever certified it; those before are forgotten. */
  setRevoked(keys: ReadonlySet<string>): void {
    this.#revokedKeys = keys;
    this.#judged.clear();
  }

  isRevoked(keyId: string): boolean {
    return this.#revokedKeys.has(keyId);
  }

  setTokens(tokens: BearerTokens): void {
    this.#tokens = tokens;
  }

  admit(presented: Presented, call: Call): Admitted {
    const admitted = this.#identify(presented);
    mustBeAllowed(admitted.caller, call, null);
    return admitted;
  }

  #identify({ certificate, authorization }: Presented): Admitted {
    if (certificate !== null) return this.#member(certificate);
    if (authorization !== null) {
      const caller = findBearer(this.#tokens, authorization.replace(/^Bearer /i, ""));
      if (caller !== null)
        return { caller, keyId: null, uri: callerUri(this.#trustDomain, caller) };
      throw new RelightError("token_invalid", "Cannot answer: nobody has this bearer token");
    }
    throw new RelightError(
      "unauthenticated",
      "Cannot answer: the caller shows neither a certificate of this fleet nor a bearer token",
    );
  }

  #member(certificate: PresentedCertificate): Admitted {
    const now = this.#now();
    const fingerprint = createHash("sha256").update(certificate.raw).digest("base64");
    const known = this.#judged.get(fingerprint);
    if (known !== undefined && now <= known.notAfter) return known;
    const { authorities } = this.#identity;
    const revokedKeys = this.#revokedKeys;
    const judging = { authorities, revokedKeys, purpose: "client_auth", now } as const;
    const { leaf, notAfter } = identifyPeer(certificate, judging).chain;
    const member = { ...memberNamed(leaf), notAfter, keyId: leaf.keyId };
    if (member.trustDomain !== this.#trustDomain) {
      throw new RelightError(
        "certificate_invalid",
        `Cannot accept "${member.uri}": it is of another trust domain than "${this.#trustDomain}"`,
      );
    }
    if (this.#judged.size >= judgedMax) this.#judged.clear();
    this.#judged.set(fingerprint, member);
    return member;
  }
}

/** @param owner Whose record the call changes. @throws RelightError `role_denied`. */
export function mustBeAllowed(caller: Caller, call: Call, owner: string | null): void {
  const permission = authorise(caller, call, owner);
  if (permission.state === "allowed") return;
  throw new RelightError(permission.code, `Cannot answer: ${permission.reason}`);
}

/**
 * A record changes by the word of its publisher or of an operator. Where nobody had to prove anything,
 * at its publication or now, anybody may.
 * @throws RelightError `role_denied`.
 */
export function mustOwn(by: Admitted | null, call: Call, publisher: string | null): void {
  if (by === null || publisher === null) return;
  mustBeAllowed(by.caller, call, publisher.split("/").at(-1) ?? "");
}
