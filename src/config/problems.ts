// SPDX-License-Identifier: Apache-2.0
// What is wrong with the settings, all of it at once: nobody should correct one line, start again and
// meet the next.

import { type Code, type Details, RelightError } from "../errors.ts";

export interface Problem {
  /** The key, flag or variable that it is about. */
  readonly subject: string;
  readonly message: string;
  /** Where it was read: a flag, a variable, a file and line. */
  readonly origin: string;
}

const problemsMax = 100;

/** One error for all problems; its details hold each under its subject. */
export function problemsError(
  problems: readonly Problem[],
  code: Extract<Code, "config_invalid" | "usage_invalid">,
): RelightError {
  const shown = problems.slice(0, problemsMax);
  const widest = Math.max(...shown.map((one) => one.subject.length));
  const heading =
    problems.length === 1 ? "1 setting is wrong" : `${problems.length} settings are wrong`;
  const lines = shown.map(
    (one) => `  ${one.subject.padEnd(widest)}  ${one.message}   (${one.origin})`,
  );
  return new RelightError(code, [heading, ...lines].join("\n"), { details: detailsOf(shown) });
}

function detailsOf(problems: readonly Problem[]): Details {
  const details: Record<string, string> = {};
  for (const { subject, message, origin } of problems) {
    const line = `${message} (${origin})`;
    details[subject] = details[subject] === undefined ? line : `${details[subject]}; ${line}`;
  }
  return details;
}
