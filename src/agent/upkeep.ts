// SPDX-License-Identifier: Apache-2.0
// What keeps an agent a member of its fleet while it runs: joins when it could not at its start, renews
// what ends, takes up files that rotate, and tells its sockets whose keys were revoked. One look every
// two seconds; a failure is told once and tried again.

import { asRelightError, type RelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import type { Clock } from "../platform/clock.ts";
import { startDeadlineOn } from "../platform/deadline.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import type { Membership } from "./membership.ts";

/** How soon rotated files and revocations are taken up. */
const lookMs = 2_000;
/** Asking the coordinator once, and replicas of a node ask one after the other. */
export const joinMsMax = 10_000;
const backoffMsMin = 2_000;
const backoffMsMax = 60_000;

export interface Upkeep {
  readonly membership: Membership;
  /** For every socket from now on, and to judge those that are open. */
  readonly renew: (material: TlsMaterial) => Promise<void>;
  /** Ids of keys that the policy in force revokes. */
  readonly revokedKeys: () => ReadonlySet<string>;
  readonly clock: Clock;
  /** In [0, 1), for the jitter of joining. */
  readonly random: () => number;
  readonly log: Log;
}

/** Runs until the signal fires; never rejects. */
export async function keepMember(upkeep: Upkeep, signal: AbortSignal): Promise<void> {
  const { clock } = upkeep;
  const look = looker(upkeep, signal);
  while (!signal.aborted) {
    await look();
    await clock.sleep(lookMs, signal).catch(() => {});
  }
}

function looker(upkeep: Upkeep, closing: AbortSignal): () => Promise<void> {
  const { membership, renew, revokedKeys, clock, random, log } = upkeep;
  const { source } = membership;
  let said = "";
  let known: ReadonlySet<string> = new Set();
  let isShown = source?.isMember ?? false;
  let waitMs = backoffMsMin;
  let joinAtMs = 0;
  const work = async (signal: AbortSignal): Promise<void> => {
    if (source === null) return;
    if (!source.isMember) {
      if (clock.monotonicMs() < joinAtMs) return;
      joinAtMs = clock.monotonicMs() + waitMs * (0.5 + random());
      waitMs = Math.min(backoffMsMax, 2 * waitMs);
      await membership.join(signal);
      log.info("fleet_joined");
    }
    const isRenewed = await source.refresh(signal);
    const revoked = revokedKeys();
    const isRevised = revoked.size !== known.size || !revoked.isSubsetOf(known);
    if (isShown && !isRenewed && !isRevised) return;
    await renew({ ...source.material, revokedKeys: [...revoked] });
    [isShown, known] = [true, revoked];
  };
  return async () => {
    using deadline = startDeadlineOn(clock, {
      what: "keeping the certificate",
      ms: joinMsMax,
      parent: closing,
    });
    try {
      await work(deadline.signal);
      said = "";
    } catch (thrown) {
      if (closing.aborted) return;
      const { code, message }: RelightError = asRelightError(thrown);
      if (message !== said) log.warn("failure", { code, message });
      said = message;
    }
  };
}
