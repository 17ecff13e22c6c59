// SPDX-License-Identifier: Apache-2.0
// The one way out: results on standard output, as text for people or one JSON document a line for
// machines, the same facts in both; everything else on standard error.

import type { Json } from "../core/canonical-json.ts";
import { asRelightError, type RelightError } from "../errors.ts";

export interface Streams {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
  readonly isErrTerminal: boolean;
}

export class Output {
  readonly isJson: boolean;
  readonly #streams: Streams;

  constructor(isJson: boolean, streams: Streams) {
    this.isJson = isJson;
    this.#streams = streams;
  }

  /** One result. `text` is called only when people read. */
  result(value: Json, text: () => string): void {
    this.#streams.out(this.isJson ? `${JSON.stringify(value)}\n` : withNewline(text()));
  }

  /** A remark for people; machines do not get it. */
  note(text: string): void {
    if (!this.isJson) this.#streams.err(withNewline(text));
  }

  /** A result beside one that is not ours, for machines: one JSON document a line on standard error. */
  aside(value: object): void {
    if (this.isJson) this.#streams.err(withNewline(JSON.stringify(value)));
  }

  failure(thrown: unknown): void {
    const error = asRelightError(thrown);
    const text = this.isJson ? JSON.stringify(errorJson(error)) : errorText(error);
    this.#streams.err(withNewline(text));
  }
}

/** Columns padded to their widest cell; the last is left as it is. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [index, cell] of row.entries()) {
      widths[index] = Math.max(widths[index] ?? 0, cell.length);
    }
  }
  const line = (row: readonly string[]) =>
    row.map((cell, index) => (index === row.length - 1 ? cell : cell.padEnd(widths[index] ?? 0)));
  return rows.map((row) => line(row).join("  ").trimEnd()).join("\n");
}

function errorText(error: RelightError): string {
  return `error: ${error.message}\n  code ${error.code}: ${error.facts.means}\n  next ${error.facts.next}`;
}

function errorJson(error: RelightError): Json {
  const { blame, retry, exit, means, next } = error.facts;
  const { code, message, details } = error;
  return { error: { code, message, details, blame, retry, exit, means, next } };
}

function withNewline(text: string): string {
  return text.endsWith("\n") ? text : `${text}\n`;
}
