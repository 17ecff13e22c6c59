// SPDX-License-Identifier: Apache-2.0
// What a process shows of itself in TLS, as plain bytes: read from three PEM files or made by an
// enrolment, checked once, and handed to threads. tls.ts turns it into options for sockets.

import { createPrivateKey, type KeyObject } from "node:crypto";
import { RelightError } from "../errors.ts";
import {
  type Certificate,
  invalidCertificate,
  readCertificate,
  readCertificatesPem,
} from "./certificate.ts";
import { validateChain } from "./chain.ts";
import { privateKeyPem } from "./keys.ts";
import { isSpiffeId } from "./pattern.ts";
import { type Caller, callerFromUri } from "./roles.ts";
import type { TlsIdentity } from "./tls.ts";

/** Structured-clonable. */
export interface TlsMaterial {
  /** PKCS #8 in PEM. */
  readonly key: Uint8Array;
  /** In DER, the leaf first. */
  readonly chain: readonly Uint8Array[];
  /** In DER: whom we believe. */
  readonly authorities: readonly Uint8Array[];
  /** Ids of keys whose certificates count no more, by the policy in force; absent where there is none. */
  readonly revokedKeys?: readonly string[];
}

/** A member of a fleet by its certificate. */
export interface Member {
  readonly caller: Caller;
  readonly trustDomain: string;
  /** spiffe://DOMAIN/ROLE/NAME */
  readonly uri: string;
  /** When the first certificate of its chain ends, in Unix milliseconds. */
  readonly notAfter: number;
}

/**
 * @param files PEM: a private key, a certificate with what stands between it and an authority, and
 *   the authorities.
 * @throws RelightError `certificate_invalid`, `key_unsafe`.
 */
export function readTlsMaterial(files: {
  readonly key: Buffer;
  readonly certificate: Buffer;
  readonly authority: Buffer;
}): TlsMaterial {
  const key = readKey(files.key);
  const chain = readCertificatesPem(files.certificate.toString("latin1"));
  const authorities = readCertificatesPem(files.authority.toString("latin1"));
  const [leaf] = chain;
  if (leaf === undefined || !readCertificate(leaf).x509.checkPrivateKey(key))
    invalidCertificate("it does not belong to the private key");
  return { key: privateKeyPem(key), chain, authorities };
}

export function tlsIdentity(material: TlsMaterial): TlsIdentity {
  const { key, chain, authorities, revokedKeys = [] } = material;
  return {
    revokedKeys: new Set(revokedKeys),
    privateKeyPem: asBuffer(key),
    chain: chain.map(asBuffer),
    authorities: authorities.map((der) => readCertificate(asBuffer(der))),
  };
}

/**
 * Who we are. Checked like a peer's certificate, so that what peers would refuse is said at home.
 * @throws RelightError `certificate_invalid`.
 */
export function memberOf({ chain, authorities }: TlsIdentity, now: number): Member {
  const valid = validateChain(chain, { authorities, purpose: "client_auth", now });
  validateChain(chain, { authorities, purpose: "server_auth", now });
  return { ...memberNamed(valid.leaf), notAfter: valid.notAfter };
}

/** What a leaf says; nothing about it is checked here. @throws RelightError `certificate_invalid`. */
export function memberNamed(leaf: Certificate): Omit<Member, "notAfter"> {
  const [uri = "", ...others] = leaf.uris;
  const trustDomain = uri.split("/")[2] ?? "";
  const caller = callerFromUri(trustDomain, uri);
  if (!isSpiffeId(uri) || others.length > 0 || caller === null)
    return invalidCertificate(`want one id spiffe://DOMAIN/ROLE/NAME in it, found "${uri}"`);
  return { caller, trustDomain, uri };
}

/** The name under which every coordinator of a fleet is known. */
export function coordinatorUri(trustDomain: string): string {
  return `spiffe://${trustDomain}/operator/coordinator`;
}

function readKey(pem: Buffer): KeyObject {
  try {
    return createPrivateKey({ key: pem, format: "pem" });
  } catch (cause) {
    throw new RelightError("key_unsafe", "Cannot use private key: want one in PEM, unencrypted", {
      cause,
    });
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
