// SPDX-License-Identifier: Apache-2.0
// `relight ep scale GROUP --ranks N`: as many ranks as N, whoever has to come or go.

import { integer } from "../config/kinds.ts";
import { OperationKind } from "../protocol/gen/ep_pb.ts";
import { defineCommand } from "./command.ts";
import { operationFlags, runOperation } from "./ep-operate.ts";

export const command = defineCommand({
  settings: ["coordinator", "agent", "trust", "run", "state"],
  shortGroups: ["coordinator"],
  flags: {
    ...operationFlags,
    ranks: integer({ fallback: null, min: 1, max: 32, about: "How many ranks there shall be." }),
  },
  operands: [{ name: "GROUP", about: "Name of the group." }],
  run: (context) => {
    const { ranks } = context.flags;
    return runOperation(context, { kind: OperationKind.SCALE, ranks: ranks ?? 0 });
  },
});
