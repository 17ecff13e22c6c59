// SPDX-License-Identifier: Apache-2.0
// `relight trust policy check [FILE]`: whether this node would put a policy into force, and why not.
// Changes nothing.

import { readPolicyFile } from "../agent/open-trust.ts";
import { RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { acceptPolicy } from "../trust/accept-policy.ts";
import { judgePolicy } from "../trust/decide.ts";
import { TrustKeeper } from "../trust/keeper.ts";
import { defineCommand } from "./command.ts";
import { readPolicy } from "./trust-store.ts";

export const command = defineCommand({
  settings: ["trust", "state"],
  shortGroups: ["trust"],
  operands: [{ name: "FILE", about: "The policy; trust.policy when absent.", isOptional: true }],
  run: async ({ config, operands, output }) => {
    const file = operands[0] ?? config["trust.policy"];
    const envelope = readPolicyFile(file);
    if (envelope === null)
      throw new RelightError("not_found", `Cannot check policy "${file}": it does not exist`);
    const present = new TrustKeeper(config["trust.dir"], systemClock).policy;
    const now = systemClock.wallMs();
    const policy = acceptPolicy(envelope, {
      // Without any of its own a node would take the file's roots for its own.
      roots: present?.roots ?? readPolicy(envelope).roots,
      revokedKeys: present?.revokedKeys ?? new Set(),
      newest: { version: present?.version ?? 0, digest: present?.digest ?? "" },
      now,
    });
    const unfit = judgePolicy(policy, now);
    if (unfit !== null) throw new RelightError(unfit.code, `Cannot use policy: ${unfit.reason}`);
    const { version, document } = policy;
    output.result(
      { ok: true, version, expiresAt: document.expiresAt },
      () =>
        `policy version ${version} would be put into force here; it ends at ${document.expiresAt}`,
    );
    return 0;
  },
});
