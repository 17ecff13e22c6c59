// SPDX-License-Identifier: Apache-2.0
// Enrolment: an agent proves that it holds a key and gets a short-lived certificate for it, first with
// a join token, later by being who it is. The key never leaves the agent; its certificate carries the
// agent's name and role and no host name, so that it can stand for nobody else.

import { z } from "zod";
import { canonicalJson } from "../core/canonical-json.ts";
import { RelightError } from "../errors.ts";
import { type Authority, issueCertificate } from "./authority.ts";
import { decodeEnvelope, encodeEnvelope, listSigners, signEnvelope } from "./envelope.ts";
import { joinTokenCharactersMax, verifyJoinToken } from "./join-token.ts";
import { type PublicKey, readPublicKey, type Signer, writePublicKey } from "./keys.ts";
import { type Caller, callerUri, memberNamePattern } from "./roles.ts";
import { clockSkewMsMax } from "./time.ts";
import { countUse, type TokenUses } from "./token-uses.ts";

const payloadType = "application/vnd.relight.enrol.v1+json";
export const enrolBytesMax = 32 * 1024;

const requestShape = z.strictObject({
  name: z.string().regex(memberNamePattern),
  key: z.string().max(256),
  /** Empty when the caller is known by its present certificate. */
  token: z.string().max(joinTokenCharactersMax),
});

export interface EnrolRequest {
  readonly name: string;
  readonly key: PublicKey;
  readonly token: string;
}

export function writeEnrolRequest(name: string, signer: Signer, token: string): Buffer {
  const text = canonicalJson({ name, key: writePublicKey(signer.publicKey), token });
  return encodeEnvelope(
    signEnvelope({ payloadType, payload: Buffer.from(text, "utf8") }, [signer]),
  );
}

/** @throws RelightError `envelope_invalid`, `request_invalid`, or `signature_invalid` without the key. */
export function readEnrolRequest(bytes: Buffer): EnrolRequest {
  const envelope = decodeEnvelope(bytes, enrolBytesMax);
  if (envelope.payloadType !== payloadType)
    invalid(`its payload type is "${envelope.payloadType}", want ${payloadType}`);
  const result = requestShape.safeParse(parseJson(envelope.payload));
  if (!result.success) return invalid(`${result.error.issues[0]?.path.join(".") ?? ""} is wrong`);
  const { name, token } = result.data;
  const key = readKey(result.data.key);
  if (listSigners(envelope, [key]).length === 0) {
    throw new RelightError(
      "signature_invalid",
      `Cannot enrol "${name}": the request is not signed by the key it names`,
    );
  }
  return { name, key, token };
}

export interface Enrolment {
  readonly caller: Caller;
  readonly environment: string;
  readonly certificate: Buffer;
  /** How long it counts, in milliseconds. */
  readonly lifetimeMs: number;
  /** To be stored before the certificate is handed out. */
  readonly uses: TokenUses;
  /** Whether the token names this node. */
  readonly isNamed: boolean;
}

/** A certificate for the holder of a token. @throws RelightError `token_invalid`, `role_denied`. */
export function enrolByToken(
  request: EnrolRequest,
  fleet: {
    readonly authority: Authority;
    readonly trustDomain: string;
    readonly issuers: readonly PublicKey[];
    readonly uses: TokenUses;
    /** 16 random bytes. */
    readonly serial: Buffer;
    readonly now: number;
  },
): Enrolment {
  const token = verifyJoinToken(request.token, fleet);
  const { node, role, environment, certificateMs: lifetimeMs } = token;
  if (node !== null && node !== request.name) {
    throw new RelightError(
      "role_denied",
      `Cannot enrol "${request.name}": the token is for "${node}"`,
    );
  }
  const uses = countUse(fleet.uses, token, fleet.now);
  const caller = { role, name: request.name };
  const certificate = issueFor(caller, request.key, { ...fleet, lifetimeMs });
  return { caller, environment, certificate, lifetimeMs, uses, isNamed: node !== null };
}

/** A new certificate for a caller known by its present one: same role, same name, whatever key it proves. */
export function issueFor(
  caller: Caller,
  key: PublicKey,
  fleet: {
    readonly authority: Authority;
    readonly trustDomain: string;
    readonly serial: Buffer;
    readonly lifetimeMs: number;
    readonly now: number;
  },
): Buffer {
  return issueCertificate(fleet.authority, {
    commonName: caller.name.slice(0, 64),
    publicKey: key.key,
    uris: [callerUri(fleet.trustDomain, caller)],
    dnsNames: [],
    addresses: [],
    // An agent serves bytes to peers and calls the coordinator with one identity.
    purposes: ["client_auth", "server_auth"],
    serial: fleet.serial,
    // Behind by the skew, so that an agent whose clock is late can use it at once.
    notBefore: fleet.now - clockSkewMsMax,
    notAfter: fleet.now + fleet.lifetimeMs,
  });
}

function readKey(text: string): PublicKey {
  try {
    return readPublicKey(text);
  } catch (cause) {
    if (cause instanceof RelightError) return invalid("key is neither Ed25519 nor P-256");
    throw cause;
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return invalid("its payload is not JSON");
  }
}

function invalid(reason: string): never {
  throw new RelightError("request_invalid", `Cannot read enrolment: ${reason}`);
}
