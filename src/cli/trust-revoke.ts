// SPDX-License-Identifier: Apache-2.0
// Revoking for good, in the policy's next version: a key and everything it alone signed, or one artifact.

import type { Config } from "../config/schema.ts";
import { isHex32 } from "../core/digest.ts";
import { RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { decodeEnvelope } from "../trust/envelope.ts";
import { policyBytesMax } from "../trust/policy.ts";
import { nextPolicy, revoke, signPolicy } from "../trust/setup.ts";
import {
  openTrustStore,
  type Put,
  policyLifetimeMs,
  presentPolicy,
  putPolicy,
  rootSigners,
} from "./trust-store.ts";

/** @throws RelightError `request_invalid` for what is no id. */
export async function revokeIn(
  config: Config,
  what: { readonly keys?: readonly string[]; readonly artifacts?: readonly string[] },
  signal: AbortSignal,
): Promise<Put> {
  const ids = [...(what.keys ?? []), ...(what.artifacts ?? [])];
  const wrong = ids.find((id) => !isHex32(id));
  if (wrong !== undefined)
    throw new RelightError("request_invalid", `Cannot revoke "${wrong}": want 64 hex characters`);
  const store = await openTrustStore(config, signal);
  const present = presentPolicy(store);
  const document = nextPolicy(present.document, revoke(present.document, what), {
    now: systemClock.wallMs(),
    lifetimeMs: policyLifetimeMs,
  });
  const envelope = signPolicy(document, rootSigners(store, present, []));
  return await putPolicy(store, decodeEnvelope(envelope, policyBytesMax), signal);
}
