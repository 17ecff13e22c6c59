// SPDX-License-Identifier: Apache-2.0
// Reads the words after `relight`: which command, which flags, which operands. Pure. Everything wrong
// is collected and reported with what is wrong in the configuration.

import type { Setting } from "../config/kinds.ts";
import { boolean, path } from "../config/kinds.ts";
import { type FlagValue, readFallback, wrongMessage } from "../config/load.ts";
import { flagAliases, flagName, shortFlagName } from "../config/names.ts";
import { nearestHint } from "../config/nearest.ts";
import type { Problem } from "../config/problems.ts";
import { schema } from "../config/schema.ts";
import type { Command } from "./command.ts";

/** Flags that every command knows. */
export const commonFlags = {
  config: path({
    fallback: null,
    placeholder: "FILE",
    about: "Configuration file; else RELIGHT_CONFIG, else ./relight.toml.",
  }),
  json: boolean({ fallback: "false", about: "Results and errors as JSON, one document a line." }),
  help: boolean({ fallback: "false", about: "Show this text." }),
};

export interface Arguments {
  readonly settings: readonly FlagValue[];
  /** Values of the command's own and of the common flags. */
  readonly own: Readonly<Record<string, unknown>>;
  readonly operands: readonly string[];
  readonly words: readonly string[];
  readonly problems: readonly Problem[];
}

/** A flag's setting and where its value goes. */
interface Target {
  readonly setting: Setting<unknown>;
  readonly kind: "setting" | "own";
  readonly key: string;
}

interface Occurrence {
  readonly target: Target;
  readonly name: string;
  readonly text: string;
}

const origin = "command line";

/** Words up to the first flag: what may name a command. */
export function leadingWords(argv: readonly string[]): readonly string[] {
  const end = argv.findIndex((word) => word.startsWith("-"));
  return end === -1 ? argv : argv.slice(0, end);
}

/** `argv` is what stands after the command's own words. */
export function readArguments(
  argv: readonly string[],
  command: {
    readonly name: string;
    readonly command: Command;
    /** Absolute; where relative paths start. */
    readonly workingDirectory: string;
  },
): Arguments {
  const targets = flagTargets(command);
  const end = argv.indexOf("--");
  const before = end === -1 ? argv : argv.slice(0, end);
  const words = end === -1 ? [] : argv.slice(end + 1);
  const problems: Problem[] = [];
  const { occurrences, operands } = scan({ argv: before, targets, problems });
  const settings: FlagValue[] = [];
  const own: Record<string, unknown> = {};
  for (const [target, given] of grouped(occurrences)) {
    refuseRepeats(given, problems);
    const all = given.map((one) => one.text);
    const texts = target.setting.isList ? all : all.slice(0, 1);
    const name = given[0]?.name ?? "";
    if (target.kind === "setting") settings.push({ key: target.key, name, texts });
    else
      own[target.key] = readOwn({ target, name, texts, base: command.workingDirectory, problems });
  }
  for (const { key, kind, setting } of targets.values()) {
    if (kind === "own" && !Object.hasOwn(own, key)) own[key] = fallbackOf(setting);
  }
  checkOperands({
    command: command.command,
    operands,
    hasWords: words.length > 0,
    hasDashes: end !== -1,
    problems,
  });
  return { settings, own, operands, words, problems };
}

/** Every spelling of every flag of a command. */
export function flagTargets(of: {
  readonly name: string;
  readonly command: Command;
}): ReadonlyMap<string, Target> {
  const targets = new Map<string, Target>();
  for (const [key, setting] of Object.entries({ ...commonFlags, ...of.command.flags })) {
    targets.set(`--${key.replaceAll("_", "-")}`, { setting, kind: "own", key });
  }
  const groups: readonly string[] = of.command.settings;
  const shortGroups: readonly string[] = of.command.shortGroups;
  for (const [key, setting] of Object.entries(schema)) {
    const group = key.slice(0, key.indexOf("."));
    if (!groups.includes(group)) continue;
    const target: Target = { setting, kind: "setting", key };
    targets.set(flagName(key), target);
    if (shortGroups.includes(group)) targets.set(shortFlagName(key), target);
    for (const [alias, aliased] of Object.entries(flagAliases))
      if (aliased === key) targets.set(alias, target);
  }
  return targets;
}

function scan(of: {
  readonly argv: readonly string[];
  readonly targets: ReadonlyMap<string, Target>;
  readonly problems: Problem[];
}): { readonly occurrences: readonly Occurrence[]; readonly operands: readonly string[] } {
  const occurrences: Occurrence[] = [];
  const operands: string[] = [];
  for (let at = 0; at < of.argv.length; at++) {
    const word = of.argv[at] ?? "";
    if (!isFlag(word)) {
      operands.push(word);
      continue;
    }
    const { name, inline } = splitFlag(word);
    const target = of.targets.get(name);
    if (target === undefined) {
      const message = `No such flag${nearestHint(name, of.targets.keys())}`;
      of.problems.push({ subject: name, message, origin });
      // What follows an unknown flag may be its value; as an operand it would only confuse.
      if (inline === undefined && isValue(of.argv[at + 1])) at++;
      continue;
    }
    const next = of.argv[at + 1];
    const text = inline ?? (target.setting.isSwitch ? "true" : isValue(next) ? next : undefined);
    if (inline === undefined && !target.setting.isSwitch && text !== undefined) at++;
    if (text !== undefined) occurrences.push({ target, name, text });
    else
      of.problems.push({
        subject: name,
        message: `Cannot take ${name} without a value: want ${target.setting.wants}`,
        origin,
      });
  }
  return { occurrences, operands };
}

function isFlag(word: string): boolean {
  return word.startsWith("-") && word !== "-";
}

function isValue(word: string | undefined): word is string {
  return word !== undefined && !word.startsWith("--");
}

function splitFlag(word: string): { readonly name: string; readonly inline: string | undefined } {
  if (word === "-h") return { name: "--help", inline: undefined };
  const equals = word.indexOf("=");
  return equals === -1
    ? { name: word, inline: undefined }
    : { name: word.slice(0, equals), inline: word.slice(equals + 1) };
}

function grouped(occurrences: readonly Occurrence[]): ReadonlyMap<Target, readonly Occurrence[]> {
  return Map.groupBy(occurrences, (one) => one.target);
}

function refuseRepeats(given: readonly Occurrence[], problems: Problem[]): void {
  const [first, second] = given;
  if (first === undefined || second === undefined || first.target.setting.isList) return;
  const spelled = first.name === second.name ? first.name : `${first.name} and ${second.name}`;
  problems.push({
    subject: first.name,
    message: `Cannot take ${spelled} more than once: want one value`,
    origin,
  });
}

function readOwn(of: {
  readonly target: Target;
  readonly name: string;
  readonly texts: readonly string[];
  readonly base: string;
  readonly problems: Problem[];
}): unknown {
  const result = of.target.setting.read(of.texts, of.base);
  if ("value" in result) return result.value;
  of.problems.push({
    subject: of.name,
    message: wrongMessage(of.target.setting, result.wrong),
    origin,
  });
  return undefined;
}

function fallbackOf(setting: Setting<unknown>): unknown {
  return readFallback(setting, { environment: {}, text: () => "" });
}

function checkOperands(of: {
  readonly command: Command;
  readonly operands: readonly string[];
  readonly hasWords: boolean;
  readonly hasDashes: boolean;
  readonly problems: Problem[];
}): void {
  const wanted = of.command.operands;
  const extra = of.operands[wanted.length];
  if (extra !== undefined) {
    const hint = of.command.takesWords ? "want -- before the command to run" : "want nothing there";
    of.problems.push({ subject: extra, message: `Cannot take this word: ${hint}`, origin });
  }
  for (const { name, about } of wanted
    .slice(of.operands.length)
    .filter((one) => one.isOptional !== true)) {
    of.problems.push({ subject: name, message: `Missing: ${about}`, origin });
  }
  if (of.command.takesWords && !of.hasWords && extra === undefined) {
    of.problems.push({ subject: "-- CMD", message: "Missing: the command to run", origin });
  }
  if (!of.command.takesWords && of.hasDashes) {
    of.problems.push({
      subject: "--",
      message: "Cannot take a command to run: want nothing after it",
      origin,
    });
  }
}
