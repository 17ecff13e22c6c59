// SPDX-License-Identifier: Apache-2.0
// `relight trust show`: whom this node trusts to author what, and its own key.

import { systemClock } from "../platform/clock.ts";
import { writePublicKey } from "../trust/keys.ts";
import type { Policy } from "../trust/policy.ts";
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
    output.result(
      {
        mode: config["trust.mode"],
        folder: store.folder,
        environment: config["trust.environment"],
        keyId: publicKey.keyId,
        publicKey: writePublicKey(publicKey),
        inForce,
        isExpired,
        document: policy.document,
      },
      () =>
        [
          formatTable([
            ["mode", config["trust.mode"]],
            ["environment", config["trust.environment"]],
            ["own key", publicKey.keyId],
            ["public key", writePublicKey(publicKey)],
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
