// SPDX-License-Identifier: Apache-2.0
// Reads the text of relight.toml into entries of key, texts and line. Knows TOML, not the settings.

import { parse, TomlError } from "smol-toml";
import { RelightError } from "../errors.ts";
import type { Problem } from "./problems.ts";

export interface ConfigFile {
  /** As it is shown to people. */
  readonly path: string;
  readonly text: string;
}

export interface FileEntry {
  readonly key: string;
  readonly texts: readonly string[];
  /** `relight.toml:14`, or without the line where it could not be found. */
  readonly origin: string;
}

export interface FileReading {
  readonly entries: readonly FileEntry[];
  readonly problems: readonly Problem[];
}

export const fileCharsMax = 1_048_576;

/** Never throws: what cannot be read is a problem. */
export function readEntries(file: ConfigFile): FileReading {
  const entries: FileEntry[] = [];
  const problems: Problem[] = [];
  const tree = parseToml(file, problems);
  for (const [group, table] of Object.entries(tree)) {
    if (!isTable(table)) {
      problems.push(strayValue(file, group));
      continue;
    }
    for (const [name, value] of Object.entries(table)) {
      const origin = originOf(file, { group, name });
      const given = textsOf(value);
      const key = `${group}.${name}`;
      if (given !== undefined) entries.push({ key, texts: given, origin });
      else problems.push({ subject: key, message: unreadable, origin });
    }
  }
  return { entries, problems };
}

const unreadable =
  "Cannot read the value: want a text, a whole number, true, false or a list of texts";

function parseToml(file: ConfigFile, problems: Problem[]): Record<string, unknown> {
  try {
    if (file.text.length > fileCharsMax) {
      throw new RelightError("config_invalid", `the file has more than ${fileCharsMax} characters`);
    }
    return parse(file.text, { maxDepth: 4 });
  } catch (cause) {
    const at = cause instanceof TomlError ? `:${cause.line}:${cause.column}` : "";
    const [reason = ""] = (cause instanceof Error ? cause.message : String(cause)).split("\n");
    problems.push({
      subject: file.path,
      message: `Cannot read the file: ${reason}`,
      origin: `${file.path}${at}`,
    });
    return {};
  }
}

function strayValue(file: ConfigFile, name: string): Problem {
  return {
    subject: name,
    message: "Cannot take a setting outside a table: want [group] before it",
    origin: originOf(file, { group: "", name }),
  };
}

/** A scalar is one text, a list of scalars several; anything else is unreadable. */
function textsOf(value: unknown): readonly string[] | undefined {
  if (Array.isArray(value)) {
    const texts = value.map(textOf);
    return texts.every((text) => text !== undefined) ? texts : undefined;
  }
  const text = textOf(value);
  return text === undefined ? undefined : [text];
}

function textOf(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  return typeof value === "boolean" || Number.isSafeInteger(value) ? String(value) : undefined;
}

function isTable(value: unknown): value is Record<string, unknown> {
  return (
    typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date)
  );
}

/** The parser keeps no positions, so the line is searched for; unusual spellings show the file only. */
function originOf(file: ConfigFile, entry: { group: string; name: string }): string {
  let group = "";
  for (const [index, line] of file.text.split("\n").entries()) {
    group = /^\s*\[\s*([A-Za-z0-9_-]+)\s*\]/.exec(line)?.[1] ?? group;
    const name = /^\s*([A-Za-z0-9_.-]+)\s*=/.exec(line)?.[1];
    const full = group === "" ? name : `${group}.${name}`;
    const wanted = entry.group === "" ? entry.name : `${entry.group}.${entry.name}`;
    if (name !== undefined && full === wanted) return `${file.path}:${index + 1}`;
  }
  return file.path;
}
