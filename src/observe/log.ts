// SPDX-License-Identifier: Apache-2.0
// Structured log lines. An event has a constant name from the table below and a flat bag of fields;
// context (node, replica) is bound once with `with`. One line per state change, none per chunk.

import { pino } from "pino";
import type { Details } from "../errors.ts";

export type Level = "debug" | "info" | "warn" | "error" | "silent";

/** Every event that Relight logs, with its meaning. Tests may assert that an event was reached. */
export const events = {
  cold_start: "The engine starts without what peers have; `code` says why.",
  file_changed:
    "A published file is no longer what was sealed; its pieces are refused until it is sealed again.",
  failure: "An operation failed; `code` and `message` say how.",
  fleet_joined: "This node could not join its fleet at its start and has joined now.",
  installation_undone:
    "What an earlier start installed may not be used any more and was removed; `code` says why.",
  sources_withheld:
    "Agents were lost or workers fell silent: their sources are offered no more, or were removed.",
  store_answers: "The coordinator's store answers again.",
  trust_insecure:
    "Trust is switched off: whatever a peer of the same identity offers is installed and run.",
} as const satisfies Record<string, string>;

export type EventName = keyof typeof events;

export interface Log {
  debug(event: EventName, fields?: Details): void;
  info(event: EventName, fields?: Details): void;
  warn(event: EventName, fields?: Details): void;
  error(event: EventName, fields?: Details): void;
  /** The same log with `fields` on every line. */
  with(fields: Details): Log;
}

export interface LogOptions {
  readonly level: Level;
  readonly format: "json" | "text";
  /** Receives whole lines. */
  readonly write: (line: string) => void;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

export function createLog(options: LogOptions): Log {
  const write =
    options.format === "json" ? options.write : (line: string) => options.write(textLine(line));
  const logger = pino(
    {
      level: options.level,
      base: null,
      messageKey: "event",
      timestamp: () => `,"time":"${new Date(options.now()).toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    { write },
  );
  return bound(logger);
}

/** Writes nothing; for tests and for callers that were given no log. */
export const silentLog: Log = {
  debug: () => {},
  info: () => {},
  warn: () => {},
  error: () => {},
  with: () => silentLog,
};

type Sink = Pick<ReturnType<typeof pino>, "debug" | "info" | "warn" | "error" | "child">;

function bound(sink: Sink): Log {
  return {
    debug: (event, fields = {}) => sink.debug(fields, event),
    info: (event, fields = {}) => sink.info(fields, event),
    warn: (event, fields = {}) => sink.warn(fields, event),
    error: (event, fields = {}) => sink.error(fields, event),
    with: (fields) => bound(sink.child(fields)),
  };
}

/** `12:03:04.123 info  cold_start code=no_source`. */
function textLine(json: string): string {
  const { time, level, event, ...fields }: Record<string, unknown> = JSON.parse(json);
  const shown = Object.entries(fields).map(([name, value]) => `${name}=${fieldText(value)}`);
  const clock = String(time).slice(11, 23);
  return `${[clock, String(level).padEnd(5), String(event), ...shown].join(" ")}\n`;
}

function fieldText(value: unknown): string {
  return typeof value === "string" && /^[\w.:/@+-]+$/.test(value) ? value : JSON.stringify(value);
}
