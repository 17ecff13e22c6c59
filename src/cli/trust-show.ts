// SPDX-License-Identifier: Apache-2.0
// `relight trust show`: whom this node trusts to author what, and its own key.

import fs from "node:fs";
import path from "node:path";
import { memberKeyName } from "../agent/membership.ts";
import { systemClock } from "../platform/clock.ts";
import { loadKey } from "../trust/key-file.ts";
import { writePublicKey } from "../trust/keys.ts";
import type { EnrolledMember } from "../trust/members.ts";
import { membersFileIn, readMembers } from "../trust/members-file.ts";
import type { Policy } from "../trust/policy.ts";
import { timeText } from "../trust/time.ts";
import { defineCommand } from "./command.ts";
import { formatTable } from "./output.ts";
import { openTrustStore, presentPolicy } from "./trust-store.ts";

export const command = defineCommand({
  settings: ["trust", "state"],
  shortGroups: ["trust"],
  run: async ({ config, output, signal }) => {
    const store = await openTrustStore(config, signal);
    const policy = presentPolicy(store);
    const { publicKey } = store.author;
    const isExpired = policy.expiresAt <= systemClock.wallMs();
    const inForce = store.keeper.policy?.version ?? null;
    const memberKeyId = memberKeyOf(store.folder);
    const members = [...readMembers(membersFileIn(store.folder))].map(([keyId, member]) => ({
      ...member,
      keyId,
      isRevoked: policy.revokedKeys.has(keyId),
    }));
    output.result(
      {
        mode: config["trust.mode"],
        folder: store.folder,
        environment: config["trust.environment"],
        keyId: publicKey.keyId,
        publicKey: writePublicKey(publicKey),
        inForce,
        isExpired,
        memberKeyId,
        members,
        document: policy.document,
      },
      () =>
        [
          formatTable([
            ["mode", config["trust.mode"]],
            ["environment", config["trust.environment"]],
            ["own key", publicKey.keyId],
            ["public key", writePublicKey(publicKey)],
            ...(memberKeyId === null ? [] : [["certified key", memberKeyId]]),
            ["policy", `version ${policy.version}, in force here: ${inForce ?? "none"}`],
            ["ends", `${policy.document.expiresAt}${isExpired ? " (has ended)" : ""}`],
            ["roots", `${policy.roots.threshold} of ${policy.roots.keys.length}`],
            ...policy.roots.keys.map(({ keyId }) => ["", keyId]),
          ]),
          "",
          formatTable([["AUTHOR", "PROVED BY"], ...authorRows(policy)]),
          "",
          formatTable([
            ["RULE", "FAMILIES", "MODELS", "ENVIRONMENTS", "SIGNERS"],
            ...policy.document.rules.map((rule) => [
              rule.identities.join(","),
              rule.families.join(","),
              rule.models.join(","),
              rule.environments.join(","),
              String(rule.threshold),
            ]),
          ]),
          "",
          formatTable([
            ["revoked keys", String(policy.revokedKeys.size)],
            ...[...policy.revokedKeys].map((id) => ["", id]),
            ["revoked artifacts", String(policy.revokedArtifacts.size)],
            ...[...policy.revokedArtifacts].map((id) => ["", id]),
          ]),
          ...(members.length === 0
            ? []
            : ["", formatTable([memberHead, ...members.map(memberRow)])]),
        ].join("\n"),
    );
    return 0;
  },
});

function authorRows(policy: Policy): string[][] {
  return policy.document.identities.map((identity) => {
    if ("key" in identity) return [identity.name, `key ${policy.anchors.get(identity.name) ?? ""}`];
    const name = "uri" in identity ? identity.uri : identity.dns;
    return [identity.name, `${name} below authority ${identity.authority}`];
  });
}

const memberHead = ["NODE", "ROLE", "CERTIFIED UNTIL", "KEY"];

function memberRow(member: EnrolledMember & { keyId: string; isRevoked: boolean }): string[] {
  const { name, role, notAfter, keyId, isRevoked } = member;
  return [name, role, isRevoked ? "revoked" : timeText(notAfter), keyId];
}

/** Of the key that this node's certificate is for; null before it has joined a fleet. */
function memberKeyOf(folder: string): string | null {
  const file = path.join(folder, memberKeyName);
  return fs.existsSync(file) ? loadKey(file).publicKey.keyId : null;
}
