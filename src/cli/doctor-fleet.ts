// SPDX-License-Identifier: Apache-2.0
// `relight doctor` on what this node shares with others: whom it trusts, what it shows of itself, the
// coordinator and its clock. Looks, and changes nothing: no token is used up, no key is made.

import { askHealth, type CoordinatorHealth } from "../agent/coordinator-health.ts";
import { type Membership, openMembership } from "../agent/membership.ts";
import { readPolicyFile } from "../agent/open-trust.ts";
import type { Config } from "../config/schema.ts";
import { formatMs } from "../core/units.ts";
import { systemClock } from "../platform/clock.ts";
import { TrustKeeper } from "../trust/keeper.ts";
import { memberOf, tlsIdentity } from "../trust/tls-material.ts";
import { agentSettings } from "./agent-settings.ts";
import { type Finding, fail, ok, unknown, warn } from "./doctor-finding.ts";
import { readPolicy } from "./trust-store.ts";

/** Certificates and statements are dated to the second, and peers tolerate little more. */
const aheadMsMax = 2_000;
const dayMs = 86_400_000;

export async function examineFleet(config: Config): Promise<readonly Finding[]> {
  const trust = checkTrust(config);
  try {
    const { nodeId, membership, trust: where, coordinator } = agentSettings(config);
    const timeoutMs = config["agent.connect_timeout"];
    const opened = openMembership(membership, {
      ...where,
      nodeId,
      coordinator,
      timeoutMs,
      clock: systemClock,
    });
    return [trust, checkCertificate(opened), ...(await checkCoordinator(opened, timeoutMs))];
  } catch (thrown) {
    const closed = unknown("coordinator", "not asked: there is no certificate to show");
    return [trust, fail("certificate", thrown), closed, noClock];
  }
}

function checkTrust(config: Config): Finding {
  const check = "trust";
  if (config["trust.mode"] === "insecure")
    return warn(check, "signatures are not asked for: whatever a peer sends is executed", {
      next: "Leave out trust.mode=insecure; one machine needs no set-up for signatures.",
    });
  try {
    const kept = new TrustKeeper(config["trust.dir"], systemClock).policy;
    const filed = readPolicyFile(config["trust.policy"]);
    const policy = kept ?? (filed === null ? null : readPolicy(filed));
    if (policy === null)
      return ok(check, "no policy yet: the first start makes a key and trusts exactly that");
    const leftDays = Math.floor((policy.expiresAt - systemClock.wallMs()) / dayMs);
    const detail = `policy version ${policy.version}, ends ${policy.document.expiresAt}`;
    if (leftDays < 0) return { ...warn(check, detail, { code: "policy_expired" }), status: "fail" };
    return leftDays < 7
      ? warn(check, detail, { next: "Sign the next version now: an expired one allows nothing." })
      : ok(check, detail);
  } catch (thrown) {
    return fail(check, thrown);
  }
}

function checkCertificate({ source }: Membership): Finding {
  const check = "certificate";
  if (source === null) return ok(check, "none: this node speaks on loopback only");
  if (!source.isMember)
    return warn(check, "none that counts: the next start asks for one, or its token has to", {
      next: "Start once with --join=TOKEN, a token of `relight trust token` at the coordinator.",
    });
  try {
    const { uri, notAfter } = memberOf(tlsIdentity(source.material), systemClock.wallMs());
    return ok(check, `${uri}, ends ${new Date(notAfter).toISOString()}`);
  } catch (thrown) {
    return fail(check, thrown);
  }
}

async function checkCoordinator(
  { source, coordinator: address }: Membership,
  timeoutMs: number,
): Promise<Finding[]> {
  const check = "coordinator";
  if (source !== null && !source.isMember)
    return [unknown(check, `${address}: not asked without a certificate`), noClock];
  try {
    const tls = source === null ? {} : { tls: () => source.material };
    const health = await askHealth({ address, timeoutMs, ...tls });
    const how = source === null ? "in plaintext" : "over TLS";
    const answers = `${address} answers ${how}`;
    return [
      health.isServing
        ? ok(check, `${answers} and serves`)
        : { ...warn(check, `${answers}, its store does not`, { code: "store_unavailable" }) },
      checkClock(health),
    ];
  } catch (thrown) {
    return [fail(check, thrown), noClock];
  }
}

const noClock = unknown("clock", "nobody to compare it with");

function checkClock({ aheadMs }: CoordinatorHealth): Finding {
  const check = "clock";
  if (aheadMs === null) return unknown(check, "the coordinator does not tell its own");
  const apart = Math.abs(aheadMs);
  const detail = `${formatMs(apart)} ${aheadMs > 0 ? "behind" : "ahead of"} the coordinator's`;
  return apart <= aheadMsMax
    ? ok(check, detail)
    : warn(check, detail, {
        next: "Keep both in step (NTP): certificates, policies and signatures are judged by the clock.",
      });
}
