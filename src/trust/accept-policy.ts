// SPDX-License-Identifier: Apache-2.0
// Whether a policy that somebody offers may become ours: signed by the roots that we trust already and
// by its own, and not older than any we have seen. The useful part of TUF's root role: a change of
// roots needs both the old and the new. That a policy has expired is judged at every use (decide.ts).

import { RelightError } from "../errors.ts";
import { decodeEnvelope, type Envelope, listSigners } from "./envelope.ts";
import {
  decodePolicy,
  invalidPolicy,
  type Policy,
  policyBytesMax,
  policyPayloadType,
  type Roots,
} from "./policy.ts";
import { clockSkewMsMax } from "./time.ts";

/** The newest policy this node has ever accepted; survives restarts. Version 0 when there was none. */
export interface PolicyMark {
  readonly version: number;
  readonly digest: string;
}

export interface Acceptance {
  /** Of the present policy, or those that were pinned when the node joined. */
  readonly roots: Roots;
  /** Keys that the present policy revokes: their signatures no longer count. */
  readonly revokedKeys: ReadonlySet<string>;
  readonly newest: PolicyMark;
  readonly now: number;
}

/**
 * The policy in an envelope. One equal to the newest is accepted again.
 * @throws RelightError `envelope_invalid`, `policy_invalid` or `policy_rollback`.
 */
export function acceptPolicy(bytes: Buffer, acceptance: Acceptance): Policy {
  const envelope = decodeEnvelope(bytes, policyBytesMax);
  if (envelope.payloadType !== policyPayloadType)
    invalidPolicy(`its payload type is "${envelope.payloadType}"`);
  // Before the payload is parsed: only a root may make this node read four megabytes of rules.
  checkSigned(envelope, acceptance, "the roots in force");
  const policy = decodePolicy(envelope.payload);
  const { revokedKeys } = acceptance;
  checkSigned(envelope, { roots: policy.roots, revokedKeys }, "its own roots");
  checkNewer(policy, acceptance.newest);
  if (policy.issuedAt > acceptance.now + clockSkewMsMax)
    invalidPolicy(`it was issued at ${policy.document.issuedAt}, which is still to come`);
  return policy;
}

function checkSigned(
  envelope: Envelope,
  { roots, revokedKeys }: Pick<Acceptance, "roots" | "revokedKeys">,
  whose: string,
): void {
  const usable = roots.keys.filter(({ keyId }) => !revokedKeys.has(keyId));
  const signers = listSigners(envelope, usable);
  if (signers.length < roots.threshold)
    invalidPolicy(`${signers.length} of ${whose} signed it, want ${roots.threshold}`);
}

function checkNewer(policy: Policy, newest: PolicyMark): void {
  if (policy.version > newest.version) return;
  if (policy.version === newest.version && policy.digest === newest.digest) return;
  const other = policy.version === newest.version ? "another text of " : "";
  throw new RelightError(
    "policy_rollback",
    `Cannot accept policy version ${policy.version}: ${other}version ${newest.version} was seen already`,
    { details: { version: policy.version, seen: newest.version } },
  );
}
