// SPDX-License-Identifier: Apache-2.0
// Where trust begins: a key and a policy for one machine, made at the first run without being asked,
// and the first policy of a fleet. Also how a policy is changed: always to the next version.

import type { Clock } from "../platform/clock.ts";
import { encodeEnvelope, signEnvelope } from "./envelope.ts";
import type { TrustKeeper } from "./keeper.ts";
import { type PublicKey, type Signer, writePublicKey } from "./keys.ts";
import {
  encodePolicy,
  type Identity,
  makePolicy,
  type PolicyDocument,
  policyFormat,
  policyPayloadType,
  type Rule,
} from "./policy.ts";
import { timeText } from "./time.ts";

const dayMs = 86_400_000;
/** A policy of one machine is renewed by the machine itself, long before it ends. */
const selfLifetimeMs = 90 * dayMs;
const selfRenewMs = 30 * dayMs;

export interface FirstPolicy {
  readonly roots: readonly PublicKey[];
  readonly rootThreshold: number;
  readonly identities: readonly Identity[];
  readonly now: number;
  readonly lifetimeMs: number;
}

/** Version 1: these identities, each alone, may author anything anywhere. Narrow it with `nextPolicy`. */
export function firstPolicy(first: FirstPolicy): PolicyDocument {
  const names = first.identities.map(({ name }) => name);
  return {
    format: policyFormat,
    version: 1,
    issuedAt: timeText(first.now),
    expiresAt: timeText(first.now + first.lifetimeMs),
    roots: { threshold: first.rootThreshold, keys: first.roots.map(writePublicKey) },
    authorities: [],
    identities: [...first.identities],
    rules: names.length > 0 ? [openRule(names)] : [],
    minimumEpoch: 0,
    authoredAfter: null,
    revoked: { keys: [], artifacts: [] },
  };
}

/** The same policy, one version on, with what is to change. @throws RelightError `policy_invalid`. */
export function nextPolicy(
  present: PolicyDocument,
  change: Partial<Omit<PolicyDocument, "format" | "version" | "issuedAt" | "expiresAt">>,
  { now, lifetimeMs }: { readonly now: number; readonly lifetimeMs: number },
): PolicyDocument {
  const next = {
    ...present,
    ...change,
    version: present.version + 1,
    issuedAt: timeText(now),
    expiresAt: timeText(now + lifetimeMs),
  };
  return makePolicy(next).document;
}

/** The policy without a key or an artifact: for good, because a revocation is never taken back. */
export function revoke(
  present: PolicyDocument,
  {
    keys = [],
    artifacts = [],
  }: { readonly keys?: readonly string[]; readonly artifacts?: readonly string[] },
): Pick<PolicyDocument, "revoked"> {
  const join = (old: readonly string[], more: readonly string[]) =>
    [...new Set([...old, ...more])].sort() as PolicyDocument["revoked"]["keys"];
  return {
    revoked: {
      keys: join(present.revoked.keys, keys),
      artifacts: join(present.revoked.artifacts, artifacts),
    },
  };
}

export function signPolicy(document: PolicyDocument, signers: readonly Signer[]): Buffer {
  const payload = encodePolicy(makePolicy(document).document);
  return encodeEnvelope(signEnvelope({ payloadType: policyPayloadType, payload }, signers));
}

/**
 * One machine that trusts exactly its own key. Does nothing on a node that follows other roots.
 * @returns Whether this node now follows its own key.
 */
export async function trustSelf(
  keeper: TrustKeeper,
  signer: Signer,
  { clock, signal }: { readonly clock: Clock; readonly signal: AbortSignal },
): Promise<boolean> {
  const key = signer.publicKey;
  await keeper.pin({ threshold: 1, keys: [key] }, signal);
  const now = clock.wallMs();
  const present = keeper.policy;
  const isOwn =
    present?.roots.keys.every(({ keyId }) => keyId === key.keyId) ?? keeper.isPinned(key);
  if (!isOwn) return false;
  if (present !== null && present.expiresAt - now > selfRenewMs) return true;
  const identity = { name: "self", key: writePublicKey(key) };
  const lifetimeMs = selfLifetimeMs;
  const document =
    present === null
      ? firstPolicy({ roots: [key], rootThreshold: 1, identities: [identity], now, lifetimeMs })
      : nextPolicy(present.document, {}, { now, lifetimeMs });
  await keeper.offer(signPolicy(document, [signer]), signal);
  return true;
}

function openRule(identities: readonly string[]): Rule {
  return {
    identities: [...identities],
    families: ["*"],
    models: ["*"],
    environments: ["*"],
    threshold: 1,
  };
}
