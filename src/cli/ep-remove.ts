// SPDX-License-Identifier: Apache-2.0
// `relight ep remove GROUP RANK`: without this rank, wherever it sits.

import { boolean } from "../config/kinds.ts";
import { RelightError } from "../errors.ts";
import { OperationKind } from "../protocol/gen/ep_pb.ts";
import { defineCommand } from "./command.ts";
import { operationFlags, runOperation } from "./ep-operate.ts";

export const command = defineCommand({
  settings: ["coordinator", "agent", "trust", "run", "state"],
  shortGroups: ["coordinator"],
  flags: {
    ...operationFlags,
    confirm_death: boolean({
      fallback: "false",
      about: "You vouch that its process has ended, where no agent is left to say so.",
    }),
  },
  operands: [
    { name: "GROUP", about: "Name of the group." },
    { name: "RANK", about: "Its slot, as `relight ep status` shows it." },
  ],
  run: async (context) => {
    const rank = Number(context.operands[1]);
    if (!Number.isInteger(rank) || rank < 0) {
      throw new RelightError(
        "usage_invalid",
        `Cannot remove "${context.operands[1]}": want a slot`,
      );
    }
    const confirmsDeath = context.flags.confirm_death;
    return runOperation(context, { kind: OperationKind.REMOVE, remove: [rank], confirmsDeath });
  },
});
