// SPDX-License-Identifier: Apache-2.0
// `npm run layers`: the import rule of .dependency-cruiser.cjs over src/. Fails also when it saw fewer
// modules than there are source files: a check that reads nothing finds nothing.

import { spawnSync } from "node:child_process";
import { globSync } from "node:fs";

interface Report {
  readonly summary: {
    readonly totalCruised: number;
    readonly violations: readonly {
      readonly from: string;
      readonly to: string;
      readonly rule: { readonly name: string };
    }[];
  };
}

const ended = spawnSync(
  process.execPath,
  [
    ...[
      "--import",
      "./tools/layers-hook.ts",
      "node_modules/dependency-cruiser/bin/dependency-cruiser.mjs",
    ],
    ...["src", "--config", ".dependency-cruiser.cjs", "--output-type", "json"],
  ],
  { encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "inherit"] },
);
const report: Report = JSON.parse(ended.stdout);
const { totalCruised, violations } = report.summary;
const sourceCount = globSync("src/**/*.ts").filter((file) => !file.endsWith(".test.ts")).length;

for (const { rule, from, to } of violations) console.error(`error: ${rule.name}: ${from} -> ${to}`);
if (totalCruised < sourceCount) {
  console.error(`error: saw ${totalCruised} modules of ${sourceCount} source files`);
}
console.log(`${totalCruised} modules, ${violations.length} violations`);
process.exitCode = violations.length > 0 || totalCruised < sourceCount ? 1 : 0;
