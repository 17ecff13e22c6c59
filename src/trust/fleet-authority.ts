// SPDX-License-Identifier: Apache-2.0
// The authority of a fleet that brings none of its own: a key and its certificate in one private file
// of the coordinator's trust folder, made at the first use. Who holds the file is the fleet.

import { createPrivateKey, createPublicKey, randomBytes } from "node:crypto";
import path from "node:path";
import { RelightError } from "../errors.ts";
import { createPrivate, readPrivate } from "../platform/private-file.ts";
import { type Authority, createAuthority } from "./authority.ts";
import { readCertificate, readCertificatesPem, writeCertificatePem } from "./certificate.ts";
import { privateKeyPem } from "./keys.ts";
import { clockSkewMsMax } from "./time.ts";

const dayMs = 86_400_000;
/** Ten years: replacing it means enrolling every node again. */
const lifetimeMs = 3_650 * dayMs;
const bytesMax = 64 * 1024;

function fileIn(folder: string): string {
  return path.join(folder, "fleet-authority.pem");
}

/** Null when there is none. @throws RelightError `key_unsafe`, `certificate_invalid`. */
export function loadAuthority(folder: string): Authority | null {
  const bytes = readPrivate(fileIn(folder), bytesMax);
  if (bytes === null) return null;
  const text = bytes.toString("latin1");
  const [der] = readCertificatesPem(text);
  const certificate = readCertificate(der ?? Buffer.alloc(0));
  const privateKey = readKey(text, fileIn(folder));
  if (createPublicKey(privateKey).equals(certificate.key)) return { certificate, privateKey };
  throw new RelightError(
    "key_unsafe",
    `Cannot use "${fileIn(folder)}": its key and its certificate do not belong together`,
  );
}

/** Two processes that start together get the same one. */
export function loadOrCreateAuthority(
  folder: string,
  { trustDomain, now }: { readonly trustDomain: string; readonly now: number },
): Authority {
  const present = loadAuthority(folder);
  if (present !== null) return present;
  const { certificate, privateKey } = createAuthority({
    commonName: `${trustDomain} fleet`,
    notBefore: now - clockSkewMsMax,
    notAfter: now + lifetimeMs,
    serial: randomBytes(16),
    pathLength: 0,
    issuer: null,
  });
  const pem = `${privateKeyPem(privateKey).toString("latin1")}${writeCertificatePem(certificate.der)}`;
  createPrivate(fileIn(folder), Buffer.from(pem, "latin1"));
  const made = loadAuthority(folder);
  if (made !== null) return made;
  throw new RelightError("key_unsafe", `Cannot use "${fileIn(folder)}": it went away`);
}

function readKey(text: string, file: string) {
  try {
    return createPrivateKey({ key: text, format: "pem" });
  } catch (cause) {
    throw new RelightError("key_unsafe", `Cannot use "${file}": it holds no private key`, {
      cause,
    });
  }
}
