// SPDX-License-Identifier: Apache-2.0
// The DSSE envelope (github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1.0.2):
// bytes, what kind of bytes they are, and signatures over both. Whether a signer may say what the
// payload says is decided elsewhere (evidence.ts, decide.ts); nothing reads a payload before that.

import { z } from "zod";
import { type Hex32, isHex32 } from "../core/digest.ts";
import { MiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import { isSignatureOf, type PublicKey, type Signer } from "./keys.ts";

export const envelopeLimits = {
  /** As large as the largest manifest; a policy or an enrolment is held to far less by its reader. */
  payloadBytesMax: 128 * MiB,
  signaturesMax: 16,
  certificatesMax: 3,
  certificateBytesMax: 16_384,
} as const;

export interface Signature {
  /** Which key is said to have signed: a hint that is proved or refused, never believed. */
  readonly keyId: Hex32;
  readonly bytes: Buffer;
  /** Certificates in DER, the signer's own first; empty for a bare key. Named `x5c` as in RFC 7515. */
  readonly chain: readonly Buffer[];
}

export interface Envelope {
  readonly payloadType: string;
  readonly payload: Buffer;
  /** Distinct by key. */
  readonly signatures: readonly Signature[];
}

const base64Max = (bytes: number) => 4 * Math.ceil(bytes / 3);
/** Unknown fields are dropped and not refused: the specification wants envelopes to be extensible. */
const envelopeShape = z.object({
  payloadType: z.string().min(1).max(256),
  payload: z.string(),
  signatures: z
    .array(
      z.object({
        keyid: z.string().refine(isHex32, "want 64 hex characters"),
        sig: z.string().min(1).max(base64Max(128)),
        x5c: z
          .array(z.string().min(1).max(base64Max(envelopeLimits.certificateBytesMax)))
          .max(envelopeLimits.certificatesMax)
          .optional(),
      }),
    )
    .max(envelopeLimits.signaturesMax),
});

/** What is signed: the pre-authentication encoding. Lengths are in bytes, so the split is unambiguous. */
export function preAuthenticationEncoding(payloadType: string, payload: Buffer): Buffer {
  const head = `DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${payload.length} `;
  return Buffer.concat([Buffer.from(head, "utf8"), payload]);
}

export function signEnvelope(
  { payloadType, payload }: { readonly payloadType: string; readonly payload: Buffer },
  signers: readonly Signer[],
): Envelope {
  const unsigned: Envelope = { payloadType, payload, signatures: [] };
  return signers.reduce(addSignature, unsigned);
}

/** The envelope with one more signature; one by the same key is replaced. */
export function addSignature(envelope: Envelope, signer: Signer): Envelope {
  const { keyId } = signer.publicKey;
  const bytes = signer.sign(preAuthenticationEncoding(envelope.payloadType, envelope.payload));
  const others = envelope.signatures.filter((signature) => signature.keyId !== keyId);
  return { ...envelope, signatures: [...others, { keyId, bytes, chain: signer.chain }] };
}

/** Those of `keys` that have signed. Their ids come from the keys themselves, not from the envelope. */
export function listSigners(envelope: Envelope, keys: readonly PublicKey[]): PublicKey[] {
  const bytes = preAuthenticationEncoding(envelope.payloadType, envelope.payload);
  const byId = new Map(keys.map((key) => [key.keyId, key]));
  return envelope.signatures.flatMap((signature) => {
    const key = byId.get(signature.keyId);
    return key !== undefined && isSignatureOf(key, bytes, signature.bytes) ? [key] : [];
  });
}

export function encodeEnvelope({ payloadType, payload, signatures }: Envelope): Buffer {
  const list = signatures.map(({ keyId, bytes, chain }) => ({
    keyid: keyId,
    sig: bytes.toString("base64"),
    ...(chain.length > 0 ? { x5c: chain.map((der) => der.toString("base64")) } : {}),
  }));
  const head = JSON.stringify({ payloadType, signatures: list }).slice(0, -1);
  return Buffer.from(`${head},"payload":"${payload.toString("base64")}"}`, "utf8");
}

/** @throws RelightError `envelope_invalid`. */
export function decodeEnvelope(
  bytes: Buffer,
  payloadBytesMax: number = envelopeLimits.payloadBytesMax,
): Envelope {
  const bytesMax = base64Max(payloadBytesMax) + 2 * MiB;
  if (bytes.length > bytesMax) invalid(`${bytes.length} bytes, want at most ${bytesMax}`);
  const result = envelopeShape.safeParse(parseJson(bytes));
  if (!result.success) {
    const issue = result.error.issues[0];
    return invalid(`${issue?.path.join(".") ?? ""}: ${issue?.message ?? "wrong shape"}`);
  }
  const { payloadType, payload, signatures } = result.data;
  if (!payloadType.isWellFormed()) invalid("its payload type is not Unicode");
  const decoded = fromBase64(payload, "payload");
  if (decoded.length > payloadBytesMax)
    invalid(`a payload of ${decoded.length} bytes, want at most ${payloadBytesMax}`);
  if (new Set(signatures.map(({ keyid }) => keyid)).size < signatures.length)
    invalid("it holds two signatures by one key");
  return {
    payloadType,
    payload: decoded,
    signatures: signatures.map(({ keyid, sig, x5c }) => ({
      keyId: keyid as Hex32,
      bytes: fromBase64(sig, "signature"),
      chain: (x5c ?? []).map((text) => fromBase64(text, "certificate")),
    })),
  };
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new RelightError("envelope_invalid", "Cannot read envelope: it is not JSON in UTF-8", {
      cause,
    });
  }
}

/** Standard or URL-safe alphabet, as the specification allows; nothing else is skipped over. */
function fromBase64(text: string, what: string): Buffer {
  const bytes = Buffer.from(text, "base64");
  const url = () => bytes.toString("base64url");
  if (bytes.toString("base64") !== text && url() !== text.replace(/={1,2}$/, ""))
    invalid(`its ${what} is not base64`);
  return bytes;
}

function invalid(reason: string): never {
  throw new RelightError("envelope_invalid", `Cannot accept envelope: ${reason}`);
}
