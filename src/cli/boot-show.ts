// SPDX-License-Identifier: Apache-2.0
// `relight boot show [BOOT]`: one start as a waterfall; the latest when none is named.

import { findBoot } from "../agent/boot-store.ts";
import { outcomeOf } from "../agent/ledger.ts";
import { drawWaterfall } from "../agent/waterfall.ts";
import type { Json } from "../core/canonical-json.ts";
import { defineCommand } from "./command.ts";

export const command = defineCommand({
  settings: ["state"],
  operands: [
    {
      name: "BOOT",
      about: "Its id or the beginning of it; the latest when absent.",
      isOptional: true,
    },
  ],
  run: async ({ config, operands, output }) => {
    const record = findBoot(config["state.dir"], operands[0]);
    // A record is JSON by construction; its type has optional parts that Json cannot name.
    output.result(
      {
        ...(structuredClone(record) as unknown as Record<string, Json>),
        outcome: outcomeOf(record),
      },
      () => drawWaterfall(record),
    );
    return 0;
  },
});
