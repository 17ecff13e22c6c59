// SPDX-License-Identifier: Apache-2.0
// `relight ep recover GROUP`: back to the ranks asked for last, with every expert owned again.

import { OperationKind } from "../protocol/gen/ep_pb.ts";
import { defineCommand } from "./command.ts";
import { operationFlags, runOperation } from "./ep-operate.ts";

export const command = defineCommand({
  settings: ["coordinator", "agent", "trust", "run", "state"],
  shortGroups: ["coordinator"],
  flags: operationFlags,
  operands: [{ name: "GROUP", about: "Name of the group." }],
  run: (context) => runOperation(context, { kind: OperationKind.RECOVER }),
});
