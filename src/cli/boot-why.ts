// SPDX-License-Identifier: Apache-2.0
// `relight boot why [BOOT]`: why a start was cold or slow, in sentences.

import { findBoot, readBoots } from "../agent/boot-store.ts";
import { explainBoot, savedMs } from "../agent/waterfall.ts";
import { defineCommand } from "./command.ts";

const comparedMax = 100;

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
    const { boots } = readBoots(config["state.dir"], comparedMax);
    const earlier = boots.filter((boot) => boot.bootId < record.bootId);
    const sentences = explainBoot(record, earlier);
    output.result({ bootId: record.bootId, savedMs: savedMs(record, earlier), sentences }, () =>
      sentences.join("\n"),
    );
    return 0;
  },
});
