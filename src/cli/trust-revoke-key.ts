// SPDX-License-Identifier: Apache-2.0
// `relight trust revoke key KEY`.

import { defineCommand } from "./command.ts";
import { revokeIn } from "./trust-revoke.ts";
import { putText } from "./trust-store.ts";

export const command = defineCommand({
  settings: ["trust", "state"],
  shortGroups: ["trust"],
  operands: [
    {
      name: "KEY",
      about: "Its id, as `relight trust show` and `relight artifact contents` tell it.",
    },
  ],
  run: async ({ config, operands, output, signal }) => {
    const put = await revokeIn(config, { keys: operands }, signal);
    output.result({ ...put }, () => putText(put));
    return 0;
  },
});
