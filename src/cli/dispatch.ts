// SPDX-License-Identifier: Apache-2.0
// From words to an exit code: find the command, read its flags and the configuration, run it, and turn
// whatever it throws into a text or a JSON line. main.ts gives it the process.

import type { Environment } from "../config/kinds.ts";
import { load } from "../config/load.ts";
import { nearestHint } from "../config/nearest.ts";
import { type Problem, problemsError } from "../config/problems.ts";
import { asRelightError, RelightError } from "../errors.ts";
import { createLog, type Log } from "../observe/log.ts";
import { type Arguments, leadingWords, readArguments } from "./args.ts";
import type { Command } from "./command.ts";
import type { CommandEntry } from "./commands.ts";
import { findConfigFile } from "./config-file.ts";
import { commandHelp, commandListHelp } from "./help.ts";
import { Output, type Streams } from "./output.ts";

/** What a command line needs of its process. */
export interface Host {
  readonly environment: Environment;
  readonly workingDirectory: string;
  readonly streams: Streams;
  readonly version: string;
  readonly now: () => number;
  /** Installs handlers on first use; the signal aborts with RelightError `cancelled`. */
  readonly cancelSignal: () => AbortSignal;
}

type Table = Readonly<Record<string, CommandEntry>>;

/** Runs one command line. Never throws; what goes wrong is written and is the exit code. */
export async function dispatch(argv: readonly string[], table: Table, host: Host): Promise<number> {
  const end = argv.indexOf("--");
  const ours = end === -1 ? argv : argv.slice(0, end);
  const output = new Output(ours.includes("--json") || ours.includes("--json=true"), host.streams);
  try {
    return await dispatchCommand(argv, { table, host, output });
  } catch (thrown) {
    output.failure(thrown);
    return asRelightError(thrown).facts.exit;
  }
}

interface Scene {
  readonly table: Table;
  readonly host: Host;
  readonly output: Output;
}

async function dispatchCommand(argv: readonly string[], scene: Scene): Promise<number> {
  const { table, host, output } = scene;
  const words = leadingWords(argv);
  if (words.length === 0 && (argv[0] === "--version" || argv[0] === "-v")) {
    output.result({ version: host.version, node: process.version }, () => host.version);
    return 0;
  }
  if (words[0] === "help") return dispatchCommand([...words.slice(1), "--help"], scene);
  const name = longestName(words, table);
  const entry = name === undefined ? undefined : table[name];
  if (name === undefined || entry === undefined) return helpOrRefuse(argv, scene);
  const { command } = await entry.load();
  const args = readArguments(argv.slice(name.split(" ").length), {
    name,
    command,
    workingDirectory: host.workingDirectory,
  });
  if (args.own["help"] === true) {
    output.result({ name, summary: entry.summary }, () =>
      commandHelp({ name, summary: entry.summary, command }),
    );
    return 0;
  }
  return runCommand({ command, args, scene });
}

/** The longest run of leading words that names a command. */
function longestName(words: readonly string[], table: Table): string | undefined {
  for (let length = words.length; length > 0; length--) {
    const name = words.slice(0, length).join(" ");
    if (Object.hasOwn(table, name)) return name;
  }
  return undefined;
}

function helpOrRefuse(argv: readonly string[], { table, output }: Scene): number {
  const words = leadingWords(argv);
  const name = words.join(" ");
  const names = Object.keys(table);
  const isGroup = words.length === 0 || names.some((one) => one.startsWith(`${name} `));
  const wantsHelp = argv.length === words.length || argv.includes("--help") || argv.includes("-h");
  if (!isGroup || !wantsHelp) {
    const hint = nearestHint(name, names);
    throw new RelightError(
      "usage_invalid",
      `Cannot run "${argv.join(" ")}": no such command${hint}`,
    );
  }
  const listed = names.filter((one) => words.length === 0 || one.startsWith(`${name} `));
  output.result(
    { commands: listed.map((one) => ({ name: one, summary: table[one]?.summary ?? "" })) },
    () => commandListHelp(table, name),
  );
  return 0;
}

async function runCommand(of: {
  readonly command: Command;
  readonly args: Arguments;
  readonly scene: Scene;
}): Promise<number> {
  const { command, args } = of;
  const { host, output } = of.scene;
  const { environment, workingDirectory } = host;
  const flag = args.own["config"];
  const found = await findConfigFile({
    flag: typeof flag === "string" ? flag : null,
    environment,
    workingDirectory,
  });
  const loaded = loadAll({ args, found, host });
  const { config } = loaded;
  return command.run({
    config,
    loaded,
    // readArguments filled this from the command's own table of flags.
    flags: args.own,
    operands: args.operands,
    words: args.words,
    output,
    log: logFor({ config, host }),
    environment,
    workingDirectory,
    configPath: found.file?.path ?? null,
    signal: command.handlesSignals ? new AbortController().signal : host.cancelSignal(),
  });
}

/** Flags, file and environment in one go; when only words and flags are wrong it is the usage. */
function loadAll(of: {
  readonly args: Arguments;
  readonly found: Awaited<ReturnType<typeof findConfigFile>>;
  readonly host: Host;
}): ReturnType<typeof load> {
  const { args, found, host } = of;
  const sources = {
    environment: host.environment,
    file: found.file,
    workingDirectory: host.workingDirectory,
    flags: args.settings,
  };
  const problems: Problem[] = [...args.problems, ...found.problems];
  if (problems.length === 0) return load({ ...sources, problems });
  try {
    load({ ...sources, problems: found.problems });
  } catch {
    // Loading fails for its own reasons too: this second pass reports both kinds in one list.
    return load({ ...sources, problems });
  }
  throw problemsError(problems, "usage_invalid");
}

function logFor(of: {
  readonly config: ReturnType<typeof load>["config"];
  readonly host: Host;
}): Log {
  const { streams, now } = of.host;
  const format = of.config["log.format"];
  const isText = format === "text" || (format === "auto" && streams.isErrTerminal);
  return createLog({
    level: of.config["log.level"],
    format: isText ? "text" : "json",
    write: streams.err,
    now,
  });
}
