// SPDX-License-Identifier: Apache-2.0
// One X.509 certificate, read strictly into what chain.ts decides on. OpenSSL, through node:crypto,
// reads it first and checks signatures; the ASN.1 library gives the extensions that Node does not show.
// Node's own `checkIssued` and `verify` are no path validation (Node's documentation says so).

import { createHash, type KeyObject, X509Certificate } from "node:crypto";
import { AsnConvert } from "@peculiar/asn1-schema";
import {
  BasicConstraints,
  Certificate as CertificateSchema,
  ExtendedKeyUsage,
  type Extension,
  id_ce_basicConstraints,
  id_ce_extKeyUsage,
  id_ce_keyUsage,
  id_ce_subjectAltName,
  KeyUsage,
  SubjectAlternativeName,
} from "@peculiar/asn1-x509";
import type { Hex32 } from "../core/digest.ts";
import { RelightError } from "../errors.ts";
import { keyIdOf } from "./keys.ts";

export interface Certificate {
  readonly der: Buffer;
  /** SHA-256 of `der`. */
  readonly fingerprint: Hex32;
  readonly x509: X509Certificate;
  readonly key: KeyObject;
  readonly keyId: Hex32;
  /** Unix milliseconds, both inclusive. */
  readonly notBefore: number;
  readonly notAfter: number;
  readonly isAuthority: boolean;
  /** How many authorities may stand between this one and a leaf; null for any number. */
  readonly pathLength: number | null;
  /** Names as in RFC 5280; null when the extension is absent. */
  readonly keyUsage: readonly string[] | null;
  /** Object identifiers of the extended key usage; null when the extension is absent. */
  readonly purposes: readonly string[] | null;
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
}

export const certificateBytesMax = 16_384;

/** Signature algorithms that are accepted: Ed25519, ECDSA and RSA with SHA-256, -384, -512. */
const signatureAlgorithms = new Set([
  "1.3.101.112",
  "1.2.840.10045.4.3.2",
  "1.2.840.10045.4.3.3",
  "1.2.840.10045.4.3.4",
  "1.2.840.113549.1.1.11",
  "1.2.840.113549.1.1.12",
  "1.2.840.113549.1.1.13",
]);
const berOptions = { maxDepth: 24, maxNodes: 1_000, maxContentLength: certificateBytesMax };

/** @throws RelightError `certificate_invalid`. */
export function readCertificate(der: Buffer): Certificate {
  if (der.length > certificateBytesMax)
    invalidCertificate(`it has ${der.length} bytes, want at most ${certificateBytesMax}`);
  try {
    return read(der);
  } catch (cause) {
    if (cause instanceof RelightError) throw cause;
    throw new RelightError("certificate_invalid", "Cannot read certificate: it is not X.509", {
      cause,
    });
  }
}

/** The certificates of a PEM text in their order. @throws RelightError `certificate_invalid`. */
export function readCertificatesPem(text: string): Buffer[] {
  const blocks = text.matchAll(
    /-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----/g,
  );
  const list = [...blocks].map(([, body]) => Buffer.from(body ?? "", "base64"));
  if (list.length === 0) invalidCertificate("the text holds none in PEM");
  return list;
}

export function writeCertificatePem(der: Buffer): string {
  const lines = der.toString("base64").match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
}

export function invalidCertificate(reason: string): never {
  throw new RelightError("certificate_invalid", `Cannot accept certificate: ${reason}`);
}

function read(der: Buffer): Certificate {
  const x509 = new X509Certificate(der);
  // Otherwise bytes after the certificate, or another encoding of it, would change its fingerprint.
  if (!x509.raw.equals(der)) invalidCertificate("its bytes are not one DER value");
  const { tbsCertificate, signatureAlgorithm } = AsnConvert.parse(der, CertificateSchema, {
    berOptions,
  });
  if (!signatureAlgorithms.has(signatureAlgorithm.algorithm))
    invalidCertificate(`it is signed by algorithm ${signatureAlgorithm.algorithm}`);
  if (!signatureAlgorithm.isEqual(tbsCertificate.signature))
    invalidCertificate("it names two signature algorithms");
  const key = x509.publicKey;
  return {
    der,
    fingerprint: createHash("sha256").update(der).digest("hex") as Hex32,
    x509,
    key,
    keyId: keyIdOf(key),
    notBefore: tbsCertificate.validity.notBefore.getTime().getTime(),
    notAfter: tbsCertificate.validity.notAfter.getTime().getTime(),
    ...readExtensions([...(tbsCertificate.extensions ?? [])]),
  };
}

function readExtensions(extensions: readonly Extension[]) {
  const byId = new Map(extensions.map((extension) => [extension.extnID, extension]));
  if (byId.size < extensions.length) invalidCertificate("it repeats an extension");
  const known = [id_ce_basicConstraints, id_ce_keyUsage, id_ce_extKeyUsage, id_ce_subjectAltName];
  const unknown = extensions.find(({ critical, extnID }) => critical && !known.includes(extnID));
  if (unknown) invalidCertificate(`its critical extension ${unknown.extnID} is not understood`);
  function parse<Shape>(id: string, shape: new () => Shape): Shape | null {
    const value = byId.get(id)?.extnValue;
    return value ? AsnConvert.parse(value.buffer, shape, { berOptions }) : null;
  }
  const constraints = parse(id_ce_basicConstraints, BasicConstraints);
  const names = [...(parse(id_ce_subjectAltName, SubjectAlternativeName) ?? [])];
  const purposes = parse(id_ce_extKeyUsage, ExtendedKeyUsage);
  return {
    isAuthority: constraints?.cA === true,
    pathLength: constraints?.pathLenConstraint ?? null,
    keyUsage: parse(id_ce_keyUsage, KeyUsage)?.toJSON() ?? null,
    purposes: purposes === null ? null : [...purposes],
    uris: names.flatMap((name) => name.uniformResourceIdentifier ?? []),
    dnsNames: names.flatMap((name) => name.dNSName ?? []),
  };
}
