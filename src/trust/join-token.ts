// SPDX-License-Identifier: Apache-2.0
// A join token: lets a new agent find and authenticate its fleet, and lets the fleet give it a
// certificate. Signed by a key of the operator's and not a shared secret, so that who can check a
// token cannot make one. Whoever holds the text may use it: short-lived, and counted.

import { z } from "zod";
import { canonicalJson, type Json } from "../core/canonical-json.ts";
import { isHex32 } from "../core/digest.ts";
import { RelightError } from "../errors.ts";
import { preAuthenticationEncoding } from "./envelope.ts";
import { isSignatureOf, type PublicKey, type Signer } from "./keys.ts";
import { memberNamePattern, roles } from "./roles.ts";
import { clockSkewMsMax, timeMs, timeShape } from "./time.ts";

const prefix = "relight-join.v1";
const payloadType = "application/vnd.relight.join-token.v1+json";
export const joinTokenCharactersMax = 8_192;

export const joinTokenShape = z.strictObject({
  /** 16 random bytes in hex; what its uses are counted by. */
  id: z.string().regex(/^[0-9a-f]{32}$/),
  role: z.enum(roles),
  /** The only name that it enrols, also when another key holds it; null for any that is free. */
  node: z.string().regex(memberNamePattern).nullable(),
  environment: z.string().min(1).max(512),
  /** How many agents may enrol with it. */
  uses: z.int().min(1).max(100_000),
  issuedAt: timeShape,
  expiresAt: timeShape,
  /** How long a certificate issued for it counts, in milliseconds: a minute to a week. */
  certificateMs: z
    .int()
    .min(60_000)
    .max(7 * 86_400_000),
  /** Host and port; null when the agent is told otherwise. */
  coordinator: z.string().max(512).nullable(),
  /** SHA-256 of the fleet's authority in DER: what the joiner holds the coordinator's certificate against. */
  authority: z.string().refine(isHex32),
  /** Who signs the policy that the joiner will accept first. */
  roots: z.strictObject({
    threshold: z.int().min(1).max(16),
    keys: z.array(z.string().max(256)).min(1).max(16),
  }),
});
export type JoinToken = z.infer<typeof joinTokenShape>;

export function writeJoinToken(token: JoinToken, signer: Signer): string {
  const payload = Buffer.from(canonicalJson(token as Json), "utf8");
  const signature = signer.sign(preAuthenticationEncoding(payloadType, payload));
  return [prefix, payload.toString("base64url"), signature.toString("base64url")].join("~");
}

/**
 * What a token says, for its holder, who trusts whoever handed it over.
 * @throws RelightError `token_invalid`.
 */
export function readJoinToken(text: string): JoinToken {
  return parse(text).token;
}

/**
 * What a token says, for the coordinator.
 * @throws RelightError `token_invalid` unless one of `issuers` signed it and it counts now.
 */
export function verifyJoinToken(
  text: string,
  { issuers, now }: { readonly issuers: readonly PublicKey[]; readonly now: number },
): JoinToken {
  const { token, payload, signature } = parse(text);
  const bytes = preAuthenticationEncoding(payloadType, payload);
  if (!issuers.some((issuer) => isSignatureOf(issuer, bytes, signature)))
    invalidToken("nobody who may issue tokens signed it");
  if (now >= timeMs(token.expiresAt)) invalidToken(`it ended at ${token.expiresAt}`);
  if (now + clockSkewMsMax < timeMs(token.issuedAt))
    invalidToken(`it begins at ${token.issuedAt}, which is still to come`);
  return token;
}

export function invalidToken(reason: string): never {
  throw new RelightError("token_invalid", `Cannot accept token: ${reason}`);
}

function parse(text: string) {
  if (text.length > joinTokenCharactersMax)
    invalidToken(`${text.length} characters, want at most ${joinTokenCharactersMax}`);
  const [head, body = "", tail = "", ...rest] = text.trim().split("~");
  if (head !== prefix || rest.length > 0) invalidToken(`want "${prefix}~...~..."`);
  const payload = fromBase64Url(body);
  const signature = fromBase64Url(tail);
  const result = joinTokenShape.safeParse(parseJson(payload));
  if (!result.success)
    return invalidToken(`${result.error.issues[0]?.path.join(".") ?? ""} is wrong`);
  return { token: result.data, payload, signature };
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    // The reason would quote the token.
    return invalidToken("its payload is not JSON");
  }
}

function fromBase64Url(text: string): Buffer {
  const bytes = Buffer.from(text, "base64url");
  if (bytes.toString("base64url") !== text) invalidToken("it is not base64url");
  return bytes;
}
