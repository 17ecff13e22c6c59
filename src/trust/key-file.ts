// SPDX-License-Identifier: Apache-2.0
// A private key in the state directory: made at the first use, PKCS #8 in PEM, mode 0600.

import { RelightError } from "../errors.ts";
import { createPrivate, readPrivate } from "../platform/private-file.ts";
import { type Algorithm, generateKey, privateKeyPem, type Signer, signerFromPem } from "./keys.ts";

/** A PEM key of the two algorithms has about 120 or 240 bytes. */
const pemBytesMax = 4_096;

/** The key in `file`, made when absent. Two processes that start together get the same one. */
export function loadOrCreateKey(file: string, algorithm: Algorithm = "ed25519"): Signer {
  const stored = readPrivate(file, pemBytesMax);
  if (stored !== null) return signerFromPem(stored);
  createPrivate(file, privateKeyPem(generateKey(algorithm)));
  return loadKey(file);
}

/** @throws RelightError `key_unsafe` when there is no usable key. */
export function loadKey(file: string): Signer {
  const stored = readPrivate(file, pemBytesMax);
  if (stored !== null) return signerFromPem(stored);
  throw new RelightError("key_unsafe", `Cannot use key "${file}": it does not exist`, {
    details: { file },
  });
}
