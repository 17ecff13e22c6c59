// SPDX-License-Identifier: Apache-2.0
// Digests that name their algorithm. BLAKE3 because it is five times faster than SHA-256 here and
// cryptographic (docs/adr/0003). A file of one chunk has `blake3:`, the digest of its bytes; a larger
// one `blake3-chunked:`, the digest of its 32-byte chunk digests in order, so that every statement
// about a file is checked in the one pass in which its chunks arrive.

import { Blake3Hasher, blake3 } from "@napi-rs/blake-hash";

export type Digest = string & { readonly __brand: "Digest" };

/** 64 lower-case hex characters. */
export type Hex32 = string & { readonly __brand: "Hex32" };

const hex32 = /^[0-9a-f]{64}$/;
const digest = /^(blake3|blake3-chunked):[0-9a-f]{64}$/;

export function isHex32(text: string): text is Hex32 {
  return hex32.test(text);
}

export function isDigest(text: string): text is Digest {
  return digest.test(text);
}

/** Without a hash object: making one costs more than hashing a small file. */
export function blake3Hex(bytes: Buffer): Hex32 {
  return blake3(bytes).toString("hex") as Hex32;
}

/** Of the digest of a file that is one chunk long or empty. */
export const wholeDigestPrefix = "blake3:";

/** The digest of a file that is one chunk long or empty. */
export function wholeDigest(bytes: Hex32): Digest {
  return `${wholeDigestPrefix}${bytes}` as Digest;
}

/** The digest of a file of two chunks or more, from the chunks' own digests in order. */
export function chunkedDigest(chunks: readonly Hex32[]): Digest {
  const hasher = new Blake3Hasher();
  for (const chunk of chunks) hasher.update(Buffer.from(chunk, "hex"));
  return `blake3-chunked:${hasher.digest("hex")}` as Digest;
}
