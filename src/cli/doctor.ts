// SPDX-License-Identifier: Apache-2.0
// `relight doctor`: looks at what most often makes a start cold and says what to do. Each check is one
// function that answers ok, warn, fail or unknown; only a fail changes the exit code.

import { codes } from "../errors.ts";
import { type Context, defineCommand } from "./command.ts";
import { examineEngine } from "./doctor-engine.ts";
import { type Finding, ok } from "./doctor-finding.ts";
import { examineFleet } from "./doctor-fleet.ts";
import { examineMachine } from "./doctor-machine.ts";
import { formatTable } from "./output.ts";

export const command = defineCommand({
  settings: ["run", "state", "coordinator", "agent", "trust", "log"],
  shortGroups: ["run"],
  run: async (context) => {
    const findings = await examine(context);
    const failed = findings.find((finding) => finding.status === "fail");
    context.output.result(
      { ok: failed === undefined, checks: findings.map((one) => ({ ...one })) },
      () => formatTable(findings.flatMap(textRows)),
    );
    return failed?.code == null ? 0 : codes[failed.code].exit;
  },
});

async function examine(context: Context): Promise<readonly Finding[]> {
  const { config, configPath, environment, signal } = context;
  const all = await Promise.all([
    examineMachine({ stateFolder: config["state.dir"], environment }),
    examineEngine({ config, environment, signal }),
    examineFleet(config),
  ]);
  const settings = ok("configuration", configPath ?? "no file; defaults, environment and flags");
  return [settings, ...all.flat()];
}

function textRows({ status, check, detail, next }: Finding): string[][] {
  const row = [status, check, detail];
  return next === null ? [row] : [row, ["", "", `next: ${next}`]];
}
