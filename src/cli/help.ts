// SPDX-License-Identifier: Apache-2.0
// Help texts, made from the table of commands and from the settings; nothing here is written twice.

import type { Setting } from "../config/kinds.ts";
import { flagName, shortFlagName } from "../config/names.ts";
import { schema } from "../config/schema.ts";
import { describeTable } from "../config/show.ts";
import { commonFlags } from "./args.ts";
import type { Command } from "./command.ts";
import type { CommandEntry } from "./commands.ts";
import { formatTable } from "./output.ts";

/** Commands whose name begins with `prefix`, one a line. */
export function commandListHelp(
  entries: Readonly<Record<string, CommandEntry>>,
  prefix: string,
): string {
  const rows = Object.entries(entries)
    .filter(([name]) => prefix === "" || name.startsWith(`${prefix} `))
    .map(([name, { summary }]) => [`  relight ${name}`, summary]);
  return [
    "Relight lights a cold inference replica from a live one.",
    "",
    formatTable(rows),
    "",
    "`relight COMMAND --help` tells a command's flags; every command takes --config=FILE and --json.",
  ].join("\n");
}

export function commandHelp(of: {
  readonly name: string;
  readonly summary: string;
  readonly command: Command;
}): string {
  const { name, summary, command } = of;
  const operands = command.operands.map((one) => (one.isOptional ? `[${one.name}]` : one.name));
  const words = command.takesWords ? ["--", "CMD", "[ARG...]"] : [];
  const usage = ["relight", name, "[FLAGS]", ...operands, ...words].join(" ");
  const sections = [
    `${usage}\n\n${summary}`,
    section(
      "",
      command.operands.map((one) => [`  ${one.name}`, one.about]),
    ),
    section("Flags", ownFlagRows({ ...command.flags, ...commonFlags })),
    ...command.settings.map((group) =>
      section(`Settings [${group}]`, settingRows(group, command.shortGroups.includes(group))),
    ),
  ];
  return sections.filter((text) => text !== "").join("\n\n");
}

function section(title: string, rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return "";
  const body = formatTable(rows);
  return title === "" ? body : `${title}\n${body}`;
}

function ownFlagRows(flags: Readonly<Record<string, Setting<unknown>>>): string[][] {
  return Object.entries(flags).map(([key, setting]) => [
    `  ${spelled(`--${key.replaceAll("_", "-")}`, setting)}`,
    setting.about,
  ]);
}

function settingRows(group: string, isShort: boolean): string[][] {
  const about = new Map(describeTable(schema).map((row) => [row.key, row]));
  return Object.entries(schema)
    .filter(([key]) => key.startsWith(`${group}.`))
    .map(([key, setting]) => {
      const fallback = about.get(key)?.fallback ?? "";
      const name = isShort ? shortFlagName(key) : flagName(key);
      return [`  ${spelled(name, setting)}`, `${setting.about} [${fallback}]`];
    });
}

function spelled(name: string, setting: Setting<unknown>): string {
  return setting.isSwitch ? name : `${name}=${setting.placeholder}`;
}
