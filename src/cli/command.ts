// SPDX-License-Identifier: Apache-2.0
// What a command is: the settings and flags it takes, and what it does with them. One file per command
// exports one of these as `command`; commands.ts names them. Commands write through `Output` only.

import type { Environment, Setting, ValueOf } from "../config/kinds.ts";
import type { Loaded } from "../config/load.ts";
import type { Config, Group } from "../config/schema.ts";
import type { Log } from "../observe/log.ts";
import type { Output } from "./output.ts";

export type Flags = Readonly<Record<string, Setting<unknown>>>;

export interface Operand {
  /** In capitals, as help shows it. */
  readonly name: string;
  readonly about: string;
  readonly isOptional?: boolean;
}

export interface Context<Own extends Flags = Flags> {
  readonly config: Config;
  readonly loaded: Loaded;
  /** Values of the command's own flags, by their names in `flags`. */
  readonly flags: { readonly [Name in keyof Own]: ValueOf<Own[Name]> };
  /** In the order of `operands`; an optional one that was not given is missing. */
  readonly operands: readonly string[];
  /** What stands after `--`. */
  readonly words: readonly string[];
  readonly output: Output;
  readonly log: Log;
  readonly environment: Environment;
  readonly workingDirectory: string;
  /** The configuration file in use, or null. */
  readonly configPath: string | null;
  /** Aborted by SIGINT and SIGTERM, with RelightError `cancelled` as its reason. */
  readonly signal: AbortSignal;
}

export interface Command<Own extends Flags = Flags> {
  /**
   * Groups of settings that are flags here. File and environment are read whole by every command.
   */
  readonly settings: readonly Group[];
  /** Groups among them whose flags are known without their prefix too; `run` for `relight run`. */
  readonly shortGroups: readonly Group[];
  /** Names in snake_case; `rows_max` is `--rows-max`. */
  readonly flags: Own;
  readonly operands: readonly Operand[];
  /** Takes `-- CMD [ARG...]`, at least one word. */
  readonly takesWords: boolean;
  /** The command installs its own handlers for SIGINT and SIGTERM; `signal` never aborts. */
  readonly handlesSignals: boolean;
  /** @returns the exit code. Throws RelightError for everything that went wrong. */
  run(context: Context<Own>): Promise<number>;
}

/** A command with what most leave out filled in; keeps the types of its own flags. */
export function defineCommand<const Own extends Flags>(
  given: Pick<Command<Own>, "run"> & Partial<Omit<Command<Own>, "run">>,
): Command {
  const flags = given.flags ?? {};
  const defaults = {
    settings: [],
    shortGroups: [],
    operands: [],
    takesWords: false,
    handlesSignals: false,
  };
  // Arguments are read by the table `flags`, so that the context has exactly its types.
  return { ...defaults, ...given, flags, run: (context) => given.run(context as Context<Own>) };
}
