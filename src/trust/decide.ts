// SPDX-License-Identifier: Apache-2.0
// The decision: may this artifact be installed here and now? Pure; the only place that knows the order
// of refusals. Asked before the first byte is fetched, and again with the receipt at every start.

import { z } from "zod";
import { isHex32 } from "../core/digest.ts";
import type { Code } from "../errors.ts";
import type { Evidence, ProvenSigner } from "./evidence.ts";
import { matchesDns, matchesSpiffe, matchesWord } from "./pattern.ts";
import type { Identity, Policy, Rule } from "./policy.ts";
import { clockSkewMsMax } from "./time.ts";

const text = (max: number) => z.string().max(max);
export const identityMapShape = z
  .record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/), text(1_024))
  .refine((map) => Object.keys(map).length <= 64, "want at most 64 entries");

/** What a statement says of its artifact, as far as a decision depends on it. */
export const factsShape = z.strictObject({
  artifactId: z.string().refine(isHex32),
  family: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/),
  /** What two replicas must share to exchange it. */
  identity: identityMapShape,
  /** Empty when the family does not depend on a model. */
  model: text(512),
  environment: text(512),
  /** Unix milliseconds. */
  createdAt: z.int(),
  expiresAt: z.int(),
  epoch: z.int().min(0),
});
export type Facts = z.infer<typeof factsShape>;

/** What the node asked for; it never takes these from the answer. */
export interface Wanted {
  readonly artifactId: string;
  readonly family: string;
  readonly identity: Readonly<Record<string, string>>;
  readonly model: string;
  readonly environment: string;
}

export interface Question {
  /** Null when the node has none: then nothing is allowed. */
  readonly policy: Policy | null;
  readonly facts: Facts;
  readonly evidence: readonly Evidence[];
  readonly wanted: Wanted;
  /** The highest epoch ever installed here for this family, model and environment; 0 when none was. */
  readonly epochFloor: number;
  /** Unix milliseconds. */
  readonly now: number;
}

export type Refusal = {
  readonly state: "refused";
  readonly code: Code;
  readonly reason: string;
};
export type Verdict =
  | {
      readonly state: "allowed";
      readonly policyVersion: number;
      /** Those who counted, one for each principal. */
      readonly signers: readonly ProvenSigner[];
      /** When the first thing relied on ends: statement, policy or a certificate. */
      readonly until: number;
    }
  | Refusal;

/** What the node may do with an artifact. Every refusal means: the engine compiles. */
export function decide(question: Question): Verdict {
  const { policy, facts, evidence, now } = question;
  const unfit = judgePolicy(policy, now);
  if (policy === null || unfit !== null)
    return unfit ?? refuse("policy_missing", "there is no trust policy");
  if (policy.revokedArtifacts.has(facts.artifactId))
    return refuse("artifact_revoked", `policy version ${policy.version} revokes it`);
  return (
    refuseByRequest(facts, question.wanted) ??
    refuseByTime(policy, question) ??
    judgeSigners(policy, facts, { evidence, now })
  );
}

/** Why nothing at all may be installed under this policy; null when that depends. */
export function judgePolicy(policy: Policy | null, now: number): Refusal | null {
  if (policy === null) return refuse("policy_missing", "there is no trust policy");
  if (now >= policy.expiresAt)
    return refuse("policy_expired", `policy version ${policy.version} has expired`);
  return null;
}

function refuseByRequest(facts: Facts, wanted: Wanted): Verdict | null {
  for (const key of ["artifactId", "family", "model", "environment"] as const) {
    if (facts[key] !== wanted[key]) return mismatch(key, { said: facts[key], wanted: wanted[key] });
  }
  const keys = new Set([...Object.keys(facts.identity), ...Object.keys(wanted.identity)]);
  for (const key of keys) {
    const said = facts.identity[key] ?? "";
    const asked = wanted.identity[key] ?? "";
    if (said !== asked) return mismatch(`identity.${key}`, { said, wanted: asked });
  }
  return null;
}

function refuseByTime(policy: Policy, { facts, epochFloor, now }: Question): Verdict | null {
  const authoredAfter = policy.document.authoredAfter;
  const epochMin = Math.max(policy.document.minimumEpoch, epochFloor);
  if (facts.createdAt > now + clockSkewMsMax)
    return refuse("statement_expired", "it was created in the future");
  if (now >= facts.expiresAt) return refuse("statement_expired", "it has expired");
  if (facts.epoch < epochMin)
    return refuse("statement_replayed", `its epoch is ${facts.epoch}, want at least ${epochMin}`);
  if (authoredAfter !== null && facts.createdAt < Date.parse(authoredAfter))
    return refuse("statement_replayed", `it was created before ${authoredAfter}`);
  return null;
}

function judgeSigners(
  policy: Policy,
  facts: Facts,
  { evidence, now }: Pick<Question, "evidence" | "now">,
): Verdict {
  if (evidence.length === 0) return refuse("signature_missing", "nobody signed it");
  const proven = evidence.flatMap((each) => (each.state === "proven" ? [each.signer] : []));
  const usable = proven.filter((signer) => isUsable(signer, policy, now));
  const rules = policy.document.rules.filter((rule) => covers(rule, facts));
  let closest: { readonly count: number; readonly threshold: number } | null = null;
  for (const rule of rules) {
    const signers = distinct(usable.filter((signer) => isNamed(signer, rule, policy)));
    if (signers.length >= rule.threshold) return allow(policy, facts, signers);
    const count = signers.length;
    if (count > (closest?.count ?? 0)) closest = { count, threshold: rule.threshold };
  }
  if (closest !== null)
    return refuse("threshold_unmet", `${closest.count} signed it, want ${closest.threshold}`);
  return explain({ policy, facts, evidence, now });
}

/** Nobody counted: the reason that tells most, in the order of how much an operator can do about it. */
function explain({
  policy,
  facts,
  evidence,
  now,
}: Pick<Question, "facts" | "evidence" | "now"> & { readonly policy: Policy }): Verdict {
  const proven = evidence.flatMap((each) => (each.state === "proven" ? [each.signer] : []));
  const revoked = proven.find(({ keyIds }) => keyIds.some((id) => policy.revokedKeys.has(id)));
  if (revoked) return refuse("signer_revoked", `key ${revoked.keyId} is revoked`);
  if (proven.some(({ notAfter }) => notAfter !== null && now > notAfter))
    return refuse("certificate_invalid", "its signer's certificate has ended");
  const failed = evidence.find(
    (each) => each.state === "refused" && each.code !== "signer_unknown",
  );
  if (failed?.state === "refused" && proven.length === 0) return refuse(failed.code, failed.reason);
  const who = proven.map(({ uri, keyId }) => uri ?? keyId).join(", ") || "its signer";
  return refuse(
    "signer_unknown",
    `no rule lets ${who} author family "${facts.family}" of model "${facts.model}" for "${facts.environment}"`,
  );
}

function isUsable(signer: ProvenSigner, policy: Policy, now: number): boolean {
  return (
    !signer.keyIds.some((id) => policy.revokedKeys.has(id)) &&
    (signer.notAfter === null || now <= signer.notAfter)
  );
}

function covers(rule: Rule, facts: Facts): boolean {
  return (
    rule.families.some((pattern) => matchesWord(pattern, facts.family)) &&
    rule.models.some((pattern) => matchesWord(pattern, facts.model)) &&
    rule.environments.some((pattern) => matchesWord(pattern, facts.environment))
  );
}

function isNamed(signer: ProvenSigner, rule: Rule, policy: Policy): boolean {
  return policy.document.identities.some(
    (identity) => rule.identities.includes(identity.name) && isIdentity(signer, identity, policy),
  );
}

/** The anchor is compared too: a later policy may give an authority's name to another certificate. */
function isIdentity(signer: ProvenSigner, identity: Identity, policy: Policy): boolean {
  const anchor = policy.anchors.get(identity.name);
  if ("key" in identity) return signer.authority === null && signer.keyId === anchor;
  if (signer.authority !== identity.authority || signer.keyIds.at(-1) !== anchor) return false;
  if ("uri" in identity) return signer.uri !== null && matchesSpiffe(identity.uri, signer.uri);
  return signer.dnsNames.some((name) => matchesDns(identity.dns, name));
}

/** One for each principal: the same workload with a renewed certificate is not a second witness. */
function distinct(signers: readonly ProvenSigner[]): ProvenSigner[] {
  const seen = new Set<string>();
  return signers.filter((signer) => {
    const names = [signer.keyId, signer.uri ?? signer.dnsNames.toSorted().join()].filter(Boolean);
    const isNew = !names.some((each) => seen.has(each));
    for (const each of names) seen.add(each);
    return isNew;
  });
}

function allow(policy: Policy, facts: Facts, signers: readonly ProvenSigner[]): Verdict {
  const ends = signers.flatMap(({ notAfter }) => (notAfter === null ? [] : [notAfter]));
  const until = Math.min(policy.expiresAt, facts.expiresAt, ...ends);
  return { state: "allowed", policyVersion: policy.version, signers, until };
}

function mismatch(
  what: string,
  { said, wanted }: { readonly said: string; readonly wanted: string },
): Verdict {
  const short = (value: string) => JSON.stringify(value.slice(0, 100));
  return refuse("statement_mismatch", `its ${what} is ${short(said)}, wanted ${short(wanted)}`);
}

function refuse(code: Code, reason: string): Refusal {
  return { state: "refused", code, reason };
}
