// SPDX-License-Identifier: Apache-2.0
// Where key material for TLS comes from while a process runs: files that others rotate, or an authority
// that lies here. Whoever opens sockets asks again every few seconds and hands on what is new.

import { createHash, randomBytes } from "node:crypto";
import { RelightError } from "../errors.ts";
import { readSecret } from "../platform/private-file.ts";
import { type Authority, createAuthority, issueCertificate } from "./authority.ts";
import { readCertificate } from "./certificate.ts";
import { generateKey, privateKeyPem, signerFrom } from "./keys.ts";
import { clockSkewMsMax } from "./time.ts";
import { memberNamed, readTlsMaterial, type TlsMaterial } from "./tls-material.ts";

export interface TlsSource {
  readonly material: TlsMaterial;
  /** @returns whether `material` is new. @throws RelightError why it cannot be; the old one stays. */
  refresh(signal: AbortSignal): Promise<boolean>;
}

export interface TlsFileNames {
  readonly certificate: string;
  readonly key: string;
  readonly authority: string;
}

const pemBytesMax = 256 * 1024;
const dayMs = 86_400_000;

/** @throws RelightError `config_invalid` for a file that is missing, `certificate_invalid`, `key_unsafe`. */
export function openTlsFiles(names: TlsFileNames): TlsSource {
  let material: TlsMaterial;
  let seen = "";
  const read = (): boolean => {
    const files = {
      certificate: readSecret(names.certificate, { bytesMax: pemBytesMax, isPublic: true }),
      key: readSecret(names.key, { bytesMax: pemBytesMax, isPublic: false }),
      authority: readSecret(names.authority, { bytesMax: pemBytesMax, isPublic: true }),
    };
    for (const [name, bytes] of Object.entries(files)) if (bytes === null) missing(name, names);
    const { certificate, key, authority } = files;
    if (certificate === null || key === null || authority === null) return false;
    const digest = digestOf([certificate, key, authority]);
    if (digest === seen) return false;
    // Files are rotated one after the other: while they do not match, this throws and is asked again.
    material = readTlsMaterial({ certificate, key, authority });
    seen = digest;
    return true;
  };
  read();
  return {
    get material() {
      return material;
    },
    refresh: async () => read(),
  };
}

/** A leaf of our own authority, renewed by ourselves at two thirds of its life. */
export function selfIssued(
  authority: Authority,
  options: {
    readonly uri: string;
    readonly lifetimeMs: number;
    readonly now: () => number;
  },
): TlsSource {
  const { uri, lifetimeMs, now } = options;
  let renewAtMs = 0;
  let material = issue();
  function issue(): TlsMaterial {
    const key = generateKey("p256");
    renewAtMs = now() + (lifetimeMs * 2) / 3;
    const leaf = issueCertificate(authority, {
      commonName: uri.split("/").at(-1) ?? "",
      publicKey: signerFrom(key).publicKey.key,
      uris: [uri],
      dnsNames: [],
      addresses: [],
      purposes: ["client_auth", "server_auth"],
      serial: randomBytes(16),
      notBefore: now() - clockSkewMsMax,
      notAfter: now() + lifetimeMs,
    });
    const { der } = authority.certificate;
    // With its issuer: who joins knows it by its fingerprint and must be shown it.
    return { key: privateKeyPem(key), chain: [leaf, der], authorities: [der] };
  }
  return {
    get material() {
      return material;
    },
    refresh: async () => {
      if (now() < renewAtMs) return false;
      material = issue();
      return true;
    },
  };
}

/** For somebody who is not known yet: nobody is believed, and nobody believes it. */
export function nobody(now: number): TlsMaterial {
  const span = { notBefore: now - clockSkewMsMax, notAfter: now + dayMs };
  const commonName = "nobody";
  const serial = randomBytes(16);
  const authority = createAuthority({ ...span, commonName, serial, pathLength: 0, issuer: null });
  const uri = "spiffe://nobody/reader/nobody";
  return selfIssued(authority, { uri, lifetimeMs: dayMs, now: () => now }).material;
}

/** The trust domain of whoever shows this material. */
export function trustDomainOf({ chain }: TlsMaterial): string {
  const [leaf] = chain;
  return leaf === undefined ? "" : memberNamed(readCertificate(Buffer.from(leaf))).trustDomain;
}

function missing(name: string, names: TlsFileNames): never {
  const file = names[name as keyof TlsFileNames];
  throw new RelightError("config_invalid", `Cannot read trust.${name}: "${file}" does not exist`);
}

function digestOf(parts: readonly Buffer[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest("hex");
}
