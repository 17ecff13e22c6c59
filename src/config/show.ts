// SPDX-License-Identifier: Apache-2.0
// A loaded configuration as rows for people and machines. Secrets are masked here, in one place.

import { type Loaded, type Origin, spellings, type Table } from "./load.ts";
import { schema } from "./schema.ts";

export interface Row {
  readonly key: string;
  /** As it would be written in the file; null when not set. */
  readonly value: string | readonly string[] | null;
  readonly origin: Origin["from"];
  /** The flag, variable, or file and line; "default". */
  readonly from: string;
}

const mask = "(secret)";

export function showConfig(loaded: Loaded): readonly Row[] {
  return showTable(schema, { values: loaded.config, origins: loaded.origins });
}

/** `showConfig` for any table. */
export function showTable(
  table: Table,
  loaded: {
    readonly values: Readonly<Record<string, unknown>>;
    readonly origins: Readonly<Record<string, Origin>>;
  },
): readonly Row[] {
  return Object.entries(table).map(([key, setting]) => {
    const texts = setting.write(loaded.values[key]);
    const shown = setting.secret ? texts.map(() => mask) : texts;
    const origin = loaded.origins[key] ?? { from: "default", name: "default" };
    return {
      key,
      value: setting.isList ? shown : (shown[0] ?? null),
      origin: origin.from,
      from: origin.name,
    };
  });
}

/** One row of the reference: every spelling, the limits, the fallback. */
export interface Description {
  readonly key: string;
  readonly flag: string;
  readonly variable: string;
  readonly wants: string;
  readonly fallback: string;
  readonly about: string;
}

export function describeTable(table: Table): readonly Description[] {
  return Object.entries(table).map(([key, setting]) => ({
    key,
    flag: spellings(key).flag,
    variable: spellings(key).variable,
    wants: setting.wants,
    fallback: describeFallback(setting.fallback),
    about: setting.about,
  }));
}

function describeFallback(fallback: Table[string]["fallback"]): string {
  if (fallback === null || fallback === "") return "not set";
  if (typeof fallback === "string") return fallback;
  if ("from" in fallback) return fallback.about;
  return fallback.length === 0 ? "none" : fallback.join(", ");
}
