// SPDX-License-Identifier: Apache-2.0
// A certificate authority of a fleet's own: makes its root and issues short-lived certificates for keys
// that agents hold. ECDSA P-256 throughout, because clients on BoringSSL (every gRPC client in C++ and
// Python) do not offer Ed25519 in a TLS handshake.

import { createHash, createPublicKey, type KeyObject, sign } from "node:crypto";
import { AsnConvert, OctetString } from "@peculiar/asn1-schema";
import {
  AlgorithmIdentifier,
  AttributeTypeAndValue,
  AttributeValue,
  AuthorityKeyIdentifier,
  BasicConstraints,
  Certificate as CertificateSchema,
  ExtendedKeyUsage,
  Extension,
  Extensions,
  GeneralName,
  id_ce_authorityKeyIdentifier,
  id_ce_basicConstraints,
  id_ce_extKeyUsage,
  id_ce_keyUsage,
  id_ce_subjectAltName,
  id_ce_subjectKeyIdentifier,
  KeyIdentifier,
  KeyUsage,
  KeyUsageFlags,
  Name,
  RelativeDistinguishedName,
  SubjectAlternativeName,
  SubjectKeyIdentifier,
  SubjectPublicKeyInfo,
  TBSCertificate,
  Validity,
  Version,
} from "@peculiar/asn1-x509";
import type { Certificate } from "./certificate.ts";
import { readCertificate } from "./certificate.ts";
import { type Purpose, purposes } from "./chain.ts";
import { generateKey } from "./keys.ts";

export interface Authority {
  readonly certificate: Certificate;
  /** P-256. */
  readonly privateKey: KeyObject;
}

/** When a certificate counts, in Unix milliseconds; seconds are what it can hold. */
export interface Span {
  readonly notBefore: number;
  readonly notAfter: number;
}

export interface Leaf extends Span {
  readonly commonName: string;
  readonly publicKey: KeyObject;
  readonly uris: readonly string[];
  readonly dnsNames: readonly string[];
  /** Dotted or colon notation. */
  readonly addresses: readonly string[];
  readonly purposes: readonly Purpose[];
  /** 16 random bytes. */
  readonly serial: Buffer;
}

const ecdsaWithSha256 = "1.2.840.10045.4.3.2";

export function createAuthority(
  options: Span & {
    readonly commonName: string;
    readonly serial: Buffer;
    /** Authorities that may stand below; 0 when it issues leaves only. */
    readonly pathLength: number;
    /** Who issues this one; itself when null. */
    readonly issuer: Authority | null;
  },
): Authority {
  const privateKey = generateKey("p256");
  const publicKey = createPublicKey(privateKey);
  const der = signCertificate({
    ...options,
    publicKey,
    issuer: options.issuer ?? { name: nameOf(options.commonName), privateKey, publicKey },
    extensions: [
      extension(
        id_ce_basicConstraints,
        new BasicConstraints({ cA: true, pathLenConstraint: options.pathLength }),
        true,
      ),
      extension(id_ce_keyUsage, keyUsage(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign), true),
    ],
  });
  return { certificate: readCertificate(der), privateKey };
}

/** A leaf certificate in DER for somebody else's key. Never outlives its authority. */
export function issueCertificate(authority: Authority, leaf: Leaf): Buffer {
  return signCertificate({
    ...leaf,
    notAfter: Math.min(leaf.notAfter, authority.certificate.notAfter),
    issuer: authority,
    extensions: [
      extension(id_ce_basicConstraints, new BasicConstraints({ cA: false }), true),
      extension(id_ce_keyUsage, keyUsage(KeyUsageFlags.digitalSignature), true),
      extension(
        id_ce_extKeyUsage,
        new ExtendedKeyUsage(leaf.purposes.map((purpose) => purposes[purpose])),
      ),
      extension(
        id_ce_subjectAltName,
        new SubjectAlternativeName([
          ...leaf.uris.map((uri) => new GeneralName({ uniformResourceIdentifier: uri })),
          ...leaf.dnsNames.map((dns) => new GeneralName({ dNSName: dns })),
          ...leaf.addresses.map((address) => new GeneralName({ iPAddress: address })),
        ]),
      ),
    ],
  });
}

interface Unsigned extends Span {
  readonly commonName: string;
  readonly publicKey: KeyObject;
  readonly serial: Buffer;
  readonly extensions: readonly Extension[];
  readonly issuer:
    | Authority
    | { readonly name: Name; readonly privateKey: KeyObject; readonly publicKey: KeyObject };
}

function signCertificate(unsigned: Unsigned): Buffer {
  const { issuer } = unsigned;
  const issuerKey = "certificate" in issuer ? issuer.certificate.key : issuer.publicKey;
  const algorithm = new AlgorithmIdentifier({ algorithm: ecdsaWithSha256 });
  const tbsCertificate = new TBSCertificate({
    version: Version.v3,
    serialNumber: positive(unsigned.serial),
    signature: algorithm,
    issuer: "certificate" in issuer ? subjectOf(issuer.certificate) : issuer.name,
    validity: new Validity({
      notBefore: new Date(unsigned.notBefore),
      notAfter: new Date(unsigned.notAfter),
    }),
    subject: nameOf(unsigned.commonName),
    subjectPublicKeyInfo: AsnConvert.parse(spkiOf(unsigned.publicKey), SubjectPublicKeyInfo),
    extensions: new Extensions([
      ...unsigned.extensions,
      extension(
        id_ce_subjectKeyIdentifier,
        new SubjectKeyIdentifier(keyIdentifier(unsigned.publicKey)),
      ),
      extension(
        id_ce_authorityKeyIdentifier,
        new AuthorityKeyIdentifier({ keyIdentifier: new KeyIdentifier(keyIdentifier(issuerKey)) }),
      ),
    ]),
  });
  const signature = sign(
    "sha256",
    Buffer.from(AsnConvert.serialize(tbsCertificate)),
    issuer.privateKey,
  );
  const certificate = new CertificateSchema({
    tbsCertificate,
    signatureAlgorithm: algorithm,
    signatureValue: exactBytes(signature),
  });
  return Buffer.from(AsnConvert.serialize(certificate));
}

function extension(id: string, value: unknown, critical = false): Extension {
  const extnValue = new OctetString(AsnConvert.serialize(value));
  return new Extension({ extnID: id, critical, extnValue });
}

function keyUsage(flags: number): KeyUsage {
  return new KeyUsage(flags);
}

function nameOf(commonName: string): Name {
  const value = new AttributeValue({ utf8String: commonName });
  // 2.5.4.3 is commonName.
  return new Name([
    new RelativeDistinguishedName([new AttributeTypeAndValue({ type: "2.5.4.3", value })]),
  ]);
}

function subjectOf(certificate: Certificate): Name {
  return AsnConvert.parse(certificate.der, CertificateSchema).tbsCertificate.subject;
}

function spkiOf(key: KeyObject): Buffer {
  return key.export({ type: "spki", format: "der" });
}

/** RFC 7093 method 1: the leftmost 160 bits of a SHA-256. */
function keyIdentifier(key: KeyObject): ArrayBuffer {
  return exactBytes(createHash("sha256").update(spkiOf(key)).digest().subarray(0, 20));
}

/** A serial number is a positive integer: the highest bit is cleared, the next one set. */
function positive(serial: Buffer): ArrayBuffer {
  const bytes = Buffer.from(serial);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return exactBytes(bytes);
}

function exactBytes(bytes: Uint8Array): ArrayBuffer {
  return new Uint8Array(bytes).buffer;
}
