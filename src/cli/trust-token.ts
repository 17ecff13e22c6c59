// SPDX-License-Identifier: Apache-2.0
// `relight trust token`: a short-lived token by which nodes join the fleet. Made where the coordinator's
// trust folder is; whoever holds the text may use it until it ends.

import { randomBytes } from "node:crypto";
import { choice, duration, formatAddress, integer, text } from "../config/kinds.ts";
import { isLoopback } from "../core/loopback.ts";
import { systemClock } from "../platform/clock.ts";
import { loadOrCreateAuthority } from "../trust/fleet-authority.ts";
import { writeJoinToken } from "../trust/join-token.ts";
import { signerFrom, writePublicKey } from "../trust/keys.ts";
import { memberNamePattern, roles } from "../trust/roles.ts";
import { timeText } from "../trust/time.ts";
import { defineCommand } from "./command.ts";
import { openTrustStore, presentPolicy } from "./trust-store.ts";

const minuteMs = 60_000;
const dayMs = 1_440 * minuteMs;

export const command = defineCommand({
  settings: ["trust", "coordinator", "state"],
  shortGroups: ["trust"],
  flags: {
    role: choice(roles, { fallback: "author", about: "What nodes that join with it may do." }),
    node: text({
      fallback: null,
      pattern: memberNamePattern,
      wants: 'up to 128 letters, digits, ".", "_" and "-"',
      about:
        "Only for the node of this name (its run.node_id), which it gets also when another key has it: a machine that lost its key comes back.",
    }),
    uses: integer({
      fallback: "1",
      min: 1,
      max: 100_000,
      about: "How many nodes may join with it.",
    }),
    lifetime: duration({
      fallback: "1h",
      minMs: minuteMs,
      maxMs: 30 * dayMs,
      about: "How long nodes may join with it.",
    }),
    certificate_lifetime: duration({
      fallback: "24h",
      minMs: minuteMs,
      maxMs: 7 * dayMs,
      about: "How long a node's first certificate counts; the node renews it well before.",
    }),
  },
  run: async ({ config, flags, output, signal }) => {
    const now = systemClock.wallMs();
    const trustDomain = config["trust.domain"];
    const authority = loadOrCreateAuthority(config["trust.dir"], { trustDomain, now });
    const { roots } = presentPolicy(await openTrustStore(config, signal));
    const address = config["coordinator.address"];
    const expiresAt = timeText(now + flags.lifetime);
    const token = writeJoinToken(
      {
        id: randomBytes(16).toString("hex"),
        role: flags.role,
        node: flags.node,
        environment: config["trust.environment"],
        uses: flags.uses,
        issuedAt: timeText(now),
        expiresAt,
        certificateMs: flags.certificate_lifetime,
        // An address of this machine would lead every other one to itself.
        coordinator: isLoopback(address.host) ? null : formatAddress(address),
        authority: authority.certificate.fingerprint,
        roots: { threshold: roots.threshold, keys: roots.keys.map(writePublicKey) },
      },
      signerFrom(authority.privateKey),
    );
    output.result({ token, role: flags.role, uses: flags.uses, expiresAt }, () => token);
    return 0;
  },
});
