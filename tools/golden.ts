// SPDX-License-Identifier: Apache-2.0
// `npm run golden`: rewrites test/golden/*.golden.json from what the code does now. Review the
// difference as code: each line is a promise to somebody.

import { spawnSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";

const files = globSync(["src/**/*.test.ts", "test/**/*.test.ts"]).filter((file) =>
  readFileSync(file, "utf8").includes("matchesGolden("),
);
const ended = spawnSync(process.execPath, ["--test", ...files], {
  env: { ...process.env, GOLDEN: "write" },
  stdio: "inherit",
});
process.exitCode = ended.status ?? 1;
