// SPDX-License-Identifier: Apache-2.0
// `relight trust revoke digest DIGEST`.

import { defineCommand } from "./command.ts";
import { revokeIn } from "./trust-revoke.ts";
import { putText } from "./trust-store.ts";

export const command = defineCommand({
  settings: ["trust", "state"],
  shortGroups: ["trust"],
  operands: [{ name: "DIGEST", about: "The artifact, as `relight artifact contents` tells it." }],
  run: async ({ config, operands, output, signal }) => {
    const put = await revokeIn(config, { artifacts: operands }, signal);
    output.result({ ...put }, () => putText(put));
    return 0;
  },
});
