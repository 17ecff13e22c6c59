// SPDX-License-Identifier: Apache-2.0
// The kinds of setting: how each is read from text, written back and described. Text from flags,
// environment and file goes through the same reader, and so does every fallback. Plain values come
// out: sizes in bytes, times in milliseconds, null for "not set".

import { isAbsolute, resolve } from "node:path";
import { GiB, KiB, MiB } from "../core/units.ts";

/** What a derived fallback may look at: the environment and the settings above it in the table. */
export interface Known {
  readonly environment: Environment;
  /** The value of a setting that stands higher up in the table, as text. */
  text(key: string): string;
}

export type Environment = Readonly<Record<string, string | undefined>>;

/** A fallback that depends on the machine; `about` says the rule for the documentation. */
export interface Derived {
  readonly about: string;
  readonly from: (known: Known) => string;
}

export type Fallback = string | readonly string[] | null | Derived;

export type Reading<Value> = { readonly value: Value } | { readonly wrong: string };

/** One setting: its kind, its limits, its fallback. The same for config keys and a command's flags. */
export interface Setting<Value> {
  /** As in `Cannot read "8XB" as a size`. */
  readonly noun: string;
  /** As in `want a number and B, KiB or MiB`. Limits included. */
  readonly wants: string;
  /** What stands for the value in help texts. */
  readonly placeholder: string;
  readonly about: string;
  readonly fallback: Fallback;
  readonly secret: boolean;
  /** May be given several times; the environment separates items with commas. */
  readonly isList: boolean;
  /** `--key` alone means `--key=true`. */
  readonly isSwitch: boolean;
  /** The value, or the first text that cannot be read. Relative paths start from `base`. */
  read(texts: readonly string[], base: string): Reading<Value>;
  /** Texts that `read` turns into an equal value. */
  write(value: Value): readonly string[];
}

export type ValueOf<Some> = Some extends Setting<infer Value> ? Value : never;

/** `null` only where the fallback is null. */
type OrNull<Value, Given> = Given extends null ? Value | null : Value;

interface Options<Given extends Fallback> {
  readonly about: string;
  readonly fallback: Given;
  readonly secret?: boolean;
  readonly placeholder?: string;
}

/** A host and a port. An IPv6 address is written in brackets. */
export interface Address {
  readonly host: string;
  /** 0 means: any free port. Only where listening allows it. */
  readonly port: number;
}

/** NAME=VALUE. */
export interface Pair {
  readonly name: string;
  readonly value: string;
}

/** How one item is read and written; a list repeats it. */
interface Item<Value> {
  readonly noun: string;
  readonly wants: string;
  readonly placeholder: string;
  parse(text: string, base: string): Value | undefined;
  format(value: Value): string;
}

const textCharsMax = 4_096;

export function text<Given extends string | null | Derived>(
  options: Options<Given> & { readonly pattern?: RegExp; readonly wants?: string },
): Setting<OrNull<string, Given>> {
  return scalar(textItem(options), options);
}

export function choice<const Choice extends string>(
  choices: readonly Choice[],
  options: Options<Choice>,
): Setting<Choice> {
  const wants = choices.join(", ").replace(/, ([^,]*)$/, " or $1");
  return scalar<Choice, Choice>(
    {
      noun: "a choice",
      wants,
      placeholder: choices.join("|"),
      parse: (given) => choices.find((one) => one === given),
      format: (value) => value,
    },
    options,
  );
}

export function boolean(options: Options<"true" | "false">): Setting<boolean> {
  const item: Item<boolean> = {
    noun: "a yes or no",
    wants: "true or false",
    placeholder: "true|false",
    parse: (given) => (given === "true" ? true : given === "false" ? false : undefined),
    format: String,
  };
  return { ...scalar<boolean, string>(item, options), isSwitch: true };
}

export function integer<Given extends string | null>(
  options: Options<Given> & { readonly min: number; readonly max: number },
): Setting<OrNull<number, Given>> {
  return scalar(
    {
      noun: "a whole number",
      wants: `a whole number from ${options.min} to ${options.max}`,
      placeholder: "N",
      parse: (given) => within(/^\d{1,15}$/.test(given) ? Number(given) : undefined, options),
      format: String,
    },
    options,
  );
}

const sizeUnits = { TiB: 1024 * GiB, GiB, MiB, KiB, B: 1 };
const timeUnits = { d: 86_400_000, h: 3_600_000, min: 60_000, s: 1_000, ms: 1 };

/** A size; the value is in bytes. */
export function bytes(
  options: Options<string> & { readonly min: number; readonly max: number },
): Setting<number> {
  return scalar<number, string>(
    quantity(sizeUnits, options, { noun: "a size", placeholder: "SIZE" }),
    options,
  );
}

/** A length of time; the value is in milliseconds. */
export function duration(
  options: Options<string> & { readonly minMs: number; readonly maxMs: number },
): Setting<number> {
  const limits = { min: options.minMs, max: options.maxMs };
  return scalar<number, string>(
    quantity(timeUnits, limits, { noun: "a duration", placeholder: "TIME" }),
    options,
  );
}

export function address(options: Options<string> & { readonly portMin: 0 | 1 }): Setting<Address> {
  return scalar<Address, string>(
    {
      noun: "an address",
      wants: `HOST:PORT with a port from ${options.portMin} to 65535; IPv6 as [HOST]:PORT`,
      placeholder: "HOST:PORT",
      parse: (given) => parseAddress(given, options.portMin),
      format: formatAddress,
    },
    options,
  );
}

/** An http or https URL, kept as it was written. */
export function url<Given extends string | null>(
  options: Options<Given>,
): Setting<OrNull<string, Given>> {
  return scalar(
    {
      noun: "a URL",
      wants: "http://HOST[:PORT][/PATH] or https://...",
      placeholder: "URL",
      parse: (given) => (isHttpUrl(given) ? given : undefined),
      format: (value) => value,
    },
    options,
  );
}

/** A file or directory; the value is absolute. */
export function path<Given extends string | null | Derived>(
  options: Options<Given>,
): Setting<OrNull<string, Given>> {
  return scalar(
    {
      noun: "a path",
      wants: "a path without NUL, of at most 4096 characters",
      placeholder: "PATH",
      parse: parsePath,
      format: (value) => value,
    },
    options,
  );
}

/** Files or directories, any number of times; the values are absolute. */
export function paths(options: Options<readonly string[]>): Setting<readonly string[]> {
  return list(
    {
      noun: "a path",
      wants: "a path without NUL, of at most 4096 characters",
      placeholder: "PATH",
      parse: parsePath,
      format: (value) => value,
    },
    options,
  );
}

/** Texts, each of which matches `pattern`. */
export function texts(
  options: Options<readonly string[]> & { readonly pattern: RegExp; readonly wants: string },
): Setting<readonly string[]> {
  return list(textItem(options), options);
}

/** NAME=VALUE, any number of times; a name twice is wrong. */
export function pairs(options: Options<readonly string[]>): Setting<readonly Pair[]> {
  return list(
    pairItem("NAME=VALUE", (value) => value),
    options,
  );
}

/** NAME=DIR, any number of times; directories come out absolute. */
export function directories(options: Options<readonly string[]>): Setting<readonly Pair[]> {
  return list(pairItem("NAME=DIR", parsePath), options);
}

export function formatAddress(value: Address): string {
  return value.host.includes(":") ? `[${value.host}]:${value.port}` : `${value.host}:${value.port}`;
}

/** @returns undefined when `text` is not HOST:PORT. */
export function parseAddress(text: string, portMin: 0 | 1): Address | undefined {
  const match = /^(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = within(match === null ? undefined : Number(match[3]), { min: portMin, max: 65_535 });
  if (host === undefined || port === undefined) return undefined;
  return match?.[1] !== undefined && !host.includes(":") ? undefined : { host, port };
}

function scalar<Value, Given extends Fallback>(
  item: Item<Value>,
  options: Options<Given>,
): Setting<OrNull<Value, Given>> {
  return {
    ...described(item, options),
    isList: false,
    read: (given, base) => {
      const [only] = given;
      const value = only === undefined ? undefined : item.parse(only, base);
      // The cast brands a Value as "Value, or null when the fallback is null", which it always is.
      return value === undefined ? { wrong: only ?? "" } : { value: value as OrNull<Value, Given> };
    },
    write: (value) => (value === null ? [] : [item.format(value as Value)]),
  };
}

function list<Value>(
  item: Item<Value>,
  options: Options<readonly string[]>,
): Setting<readonly Value[]> {
  return {
    ...described(item, options),
    isList: true,
    read: (given, base) => {
      const values: Value[] = [];
      const seen = new Set<string>();
      for (const one of given) {
        const value = item.parse(one, base);
        if (value === undefined || seen.has(nameOf(one))) return { wrong: one };
        seen.add(nameOf(one));
        values.push(value);
      }
      return { value: Object.freeze(values) };
    },
    write: (value) => value.map((one) => item.format(one)),
  };
}

function described<Value, Given extends Fallback>(item: Item<Value>, options: Options<Given>) {
  return {
    noun: item.noun,
    wants: item.wants,
    placeholder: options.placeholder ?? item.placeholder,
    about: options.about,
    fallback: options.fallback,
    secret: options.secret ?? false,
    isSwitch: false,
  };
}

function textItem(options: { readonly pattern?: RegExp; readonly wants?: string }): Item<string> {
  const { pattern = /^[^\0\n]*$/, wants = "one line of text" } = options;
  return {
    noun: "text",
    wants,
    placeholder: "TEXT",
    parse: (given) => (given.length <= textCharsMax && pattern.test(given) ? given : undefined),
    format: (value) => value,
  };
}

function pairItem(
  form: string,
  parseValue: (text: string, base: string) => string | undefined,
): Item<Pair> {
  return {
    noun: "a pair",
    wants: `${form}, each NAME once, of letters, digits, "_", "-" and "."`,
    placeholder: form,
    parse: (given, base) => {
      const match = /^([A-Za-z0-9][A-Za-z0-9_.-]{0,63})=([^\0\n]{1,4096})$/.exec(given);
      const [, name, rest] = match ?? [];
      const value = rest === undefined ? undefined : parseValue(rest, base);
      return name === undefined || value === undefined ? undefined : { name, value };
    },
    format: (pair) => `${pair.name}=${pair.value}`,
  };
}

/** What may not occur twice in a list: the NAME of a pair, else the text itself. */
function nameOf(item: string): string {
  return item.split("=", 1)[0] ?? item;
}

function quantity(
  units: Readonly<Record<string, number>>,
  limits: { readonly min: number; readonly max: number },
  words: { readonly noun: string; readonly placeholder: string },
): Item<number> {
  const names = Object.keys(units).reverse().join(", ");
  const form = /^(\d{1,16}(?:\.\d{1,3})?)([A-Za-z]+)$/;
  const format = (value: number) => formatQuantity(units, value);
  return {
    ...words,
    wants: `a number and one of ${names}, from ${format(limits.min)} to ${format(limits.max)}`,
    parse: (given) => {
      const [, number, unit] = form.exec(given) ?? [];
      const factor = unit !== undefined && Object.hasOwn(units, unit) ? units[unit] : undefined;
      return within(factor === undefined ? undefined : Math.round(Number(number) * factor), limits);
    },
    format,
  };
}

/** In the largest unit that divides the value. */
function formatQuantity(units: Readonly<Record<string, number>>, value: number): string {
  const fits = Object.entries(units).find(([, factor]) => value > 0 && value % factor === 0);
  const [unit, factor] = fits ?? Object.entries(units).at(-1) ?? ["", 1];
  return `${value / factor}${unit}`;
}

function within(
  value: number | undefined,
  limits: { readonly min: number; readonly max: number },
): number | undefined {
  return value !== undefined && value >= limits.min && value <= limits.max ? value : undefined;
}

function isHttpUrl(given: string): boolean {
  if (given.length > textCharsMax || /\s/.test(given) || !URL.canParse(given)) return false;
  const { protocol, hostname } = new URL(given);
  return (protocol === "http:" || protocol === "https:") && hostname !== "";
}

function parsePath(given: string, base: string): string | undefined {
  if (given === "" || given.length > textCharsMax || given.includes("\0")) return undefined;
  return isAbsolute(given) ? resolve(given) : resolve(base, given);
}
