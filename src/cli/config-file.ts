// SPDX-License-Identifier: Apache-2.0
// Finds and reads the configuration file: --config, else RELIGHT_CONFIG, else ./relight.toml when it
// exists. A file that was named must exist.

import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { ConfigFile } from "../config/file.ts";
import type { Environment } from "../config/kinds.ts";
import type { Problem } from "../config/problems.ts";
import { errnoOf } from "../platform/node-errors.ts";

export interface FoundFile {
  readonly file: ConfigFile | null;
  readonly problems: readonly Problem[];
}

export async function findConfigFile(of: {
  /** From --config; null when not given. */
  readonly flag: string | null;
  readonly environment: Environment;
  readonly workingDirectory: string;
}): Promise<FoundFile> {
  const variable = of.environment["RELIGHT_CONFIG"];
  const named = of.flag ?? variable;
  const path = resolve(of.workingDirectory, named ?? join(of.workingDirectory, "relight.toml"));
  try {
    return {
      file: { path: named ?? "relight.toml", text: await readFile(path, "utf8") },
      problems: [],
    };
  } catch (cause) {
    const code = errnoOf(cause);
    if (named === undefined && code === "ENOENT") return { file: null, problems: [] };
    const origin =
      of.flag !== null ? "--config" : variable !== undefined ? "RELIGHT_CONFIG" : "./relight.toml";
    const message = `Cannot read the configuration file ${JSON.stringify(path)}: ${code}`;
    return { file: null, problems: [{ subject: "config", message, origin }] };
  }
}
