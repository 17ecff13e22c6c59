// SPDX-License-Identifier: Apache-2.0
// From flags, environment and file to one frozen configuration with the origin of every value. Absent
// takes the next source, wrong stops, and everything wrong is reported at once. Pure: the caller reads
// the file and passes the environment in.

import { dirname, resolve } from "node:path";
import { type ConfigFile, readEntries } from "./file.ts";
import type { Environment, Fallback, Known, Setting } from "./kinds.ts";
import { fileName, flagName, isServiceLink, otherVariables, variableName } from "./names.ts";
import { nearestHint } from "./nearest.ts";
import { type Problem, problemsError } from "./problems.ts";
import { type Config, type Key, schema } from "./schema.ts";

export type Table = Readonly<Record<string, Setting<unknown>>>;

export interface FlagValue {
  readonly key: string;
  /** As it was written, for messages. */
  readonly name: string;
  readonly texts: readonly string[];
}

export interface Sources {
  readonly flags: readonly FlagValue[];
  readonly environment: Environment;
  readonly file: ConfigFile | null;
  /** Absolute; relative paths of flags and environment start here, those of the file at the file. */
  readonly workingDirectory: string;
  /** Found before loading, such as unknown flags; reported with the rest. */
  readonly problems: readonly Problem[];
}

export interface Origin {
  readonly from: "flag" | "environment" | "file" | "default";
  /** The flag, the variable, the file and line; "default". */
  readonly name: string;
}

export interface Loaded {
  readonly config: Config;
  readonly origins: Readonly<Record<Key, Origin>>;
}

/** What one source says about one key. */
interface Given {
  readonly texts: readonly string[];
  readonly base: string;
  readonly origin: Origin;
}

/**
 * The configuration of this process.
 * @throws RelightError `config_invalid` with every problem, each with its origin.
 */
export function load(sources: Sources): Loaded {
  const { values, origins } = loadTable(schema, sources);
  // The table that was read is the schema, so that the values are its types.
  return { config: values as Config, origins: origins as Record<Key, Origin> };
}

/** `load` for any table; tests use small ones. */
export function loadTable(
  table: Table,
  sources: Sources,
): {
  readonly values: Readonly<Record<string, unknown>>;
  readonly origins: Readonly<Record<string, Origin>>;
} {
  const problems = [...sources.problems];
  const given = [
    fromFlags(sources),
    fromEnvironment(table, sources, problems),
    fromFile(table, sources, problems),
  ];
  const values: Record<string, unknown> = {};
  const origins: Record<string, Origin> = {};
  for (const [key, setting] of Object.entries(table)) {
    // Lower sources are read as well: a wrong value is a mistake even where a flag hides it.
    const readings = given
      .flatMap((source) => source.get(key) ?? [])
      .map((one) => readGiven({ key, setting, one, problems }));
    const taken = readings[0] ?? fallbackOf({ table, key, setting, values, sources });
    values[key] = taken.value;
    origins[key] = taken.origin;
  }
  if (problems.length > 0) throw problemsError(problems, "config_invalid");
  return { values: Object.freeze(values), origins: Object.freeze(origins) };
}

type Givens = ReadonlyMap<string, Given>;

function fromFlags(sources: Sources): Givens {
  const base = sources.workingDirectory;
  return new Map(
    sources.flags.map(({ key, name, texts }) => [
      key,
      { texts, base, origin: { from: "flag", name } },
    ]),
  );
}

function fromEnvironment(table: Table, sources: Sources, problems: Problem[]): Givens {
  const givens = new Map<string, Given>();
  const keys = new Map(Object.keys(table).map((key) => [variableName(key), key]));
  for (const [name, text] of Object.entries(sources.environment)) {
    if (!name.startsWith("RELIGHT_") || text === undefined) continue;
    const key = keys.get(name);
    const setting = key === undefined ? undefined : table[key];
    if (key !== undefined && setting !== undefined) {
      const texts = setting.isList ? splitList(text) : [text];
      const origin: Origin = { from: "environment", name };
      givens.set(key, { texts, base: sources.workingDirectory, origin });
    } else if (!Object.hasOwn(otherVariables, name) && !isServiceLink(name)) {
      const hint = nearestHint(name, [...keys.keys(), ...Object.keys(otherVariables)]);
      problems.push({ subject: name, message: `No such setting${hint}`, origin: "environment" });
    }
  }
  return givens;
}

function splitList(text: string): readonly string[] {
  return text === "" ? [] : text.split(",");
}

function fromFile(table: Table, sources: Sources, problems: Problem[]): Givens {
  const givens = new Map<string, Given>();
  if (sources.file === null) return givens;
  const reading = readEntries(sources.file);
  problems.push(...reading.problems);
  const base = dirname(resolve(sources.workingDirectory, sources.file.path));
  for (const { key, texts, origin } of reading.entries) {
    if (Object.hasOwn(table, key)) {
      givens.set(key, { texts, base, origin: { from: "file", name: origin } });
    } else {
      const message = `No such setting${nearestHint(key, Object.keys(table))}`;
      problems.push({ subject: key, message, origin });
    }
  }
  return givens;
}

interface Taken {
  readonly value: unknown;
  readonly origin: Origin;
}

function readGiven(reading: {
  readonly key: string;
  readonly setting: Setting<unknown>;
  readonly one: Given;
  readonly problems: Problem[];
}): Taken {
  const { key, setting, one, problems } = reading;
  if (!setting.isList && one.texts.length !== 1) {
    problems.push({
      subject: key,
      message: "Cannot take a list: want one value",
      origin: one.origin.name,
    });
    return { value: undefined, origin: one.origin };
  }
  const result = setting.read(one.texts, one.base);
  if ("wrong" in result) {
    problems.push({
      subject: key,
      message: wrongMessage(setting, result.wrong),
      origin: one.origin.name,
    });
    return { value: undefined, origin: one.origin };
  }
  return { value: result.value, origin: one.origin };
}

const shownCharsMax = 80;

/** A secret is not repeated, even a wrong one. */
export function wrongMessage(setting: Setting<unknown>, wrong: string): string {
  const shown = setting.secret ? "what was given" : JSON.stringify(wrong.slice(0, shownCharsMax));
  return `Cannot read ${shown} as ${setting.noun}: want ${setting.wants}`;
}

function fallbackOf(of: {
  readonly table: Table;
  readonly key: string;
  readonly setting: Setting<unknown>;
  readonly values: Readonly<Record<string, unknown>>;
  readonly sources: Sources;
}): Taken {
  const origin: Origin = { from: "default", name: "default" };
  const known: Known = {
    environment: of.sources.environment,
    text: (key) => textOf(of.table[key], of.values[key]),
  };
  return { value: readFallback(of.setting, known), origin };
}

/** The value that a setting takes when nobody gives it. */
export function readFallback(setting: Setting<unknown>, known: Known): unknown {
  const texts = fallbackTexts(setting.fallback, known);
  if (texts === null) return null;
  const result = setting.read(texts, "/");
  return "wrong" in result ? undefined : result.value;
}

function fallbackTexts(fallback: Fallback, known: Known): readonly string[] | null {
  if (fallback === null) return null;
  if (typeof fallback === "string") return [fallback];
  return "from" in fallback ? [fallback.from(known)] : fallback;
}

/** Every way to give `key`, for messages and documentation. */
export function spellings(key: string): {
  readonly flag: string;
  readonly variable: string;
  readonly file: string;
} {
  const { group, name } = fileName(key);
  return { flag: flagName(key), variable: variableName(key), file: `[${group}] ${name}` };
}

/** Empty for a value that could not be read: the load fails in the end, for that reason. */
function textOf(setting: Setting<unknown> | undefined, value: unknown): string {
  return setting === undefined || value === undefined ? "" : setting.write(value).join(",");
}
