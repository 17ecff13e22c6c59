// SPDX-License-Identifier: Apache-2.0
// What a check of `relight doctor` found, and what to do about it.

import { asRelightError, type Code, codes } from "../errors.ts";

export interface Finding {
  readonly check: string;
  readonly status: "ok" | "warn" | "fail" | "unknown";
  readonly detail: string;
  /** The code that this would end in; null when nothing is wrong, or nothing that has one. */
  readonly code: Code | null;
  /** What to do; null when there is nothing to do. */
  readonly next: string | null;
}

export function ok(check: string, detail: string): Finding {
  return { check, status: "ok", detail, code: null, next: null };
}

export function unknown(check: string, detail: string, next: string | null = null): Finding {
  return { check, status: "unknown", detail, code: null, next };
}

/** @param why the code that says what to do, or what to do itself */
export function warn(check: string, detail: string, why: { code: Code } | { next: string }) {
  return notWell("warn", { check, detail }, why);
}

/** What would make a start cold, or stop it. */
export function fail(check: string, thrown: unknown): Finding {
  const { code, message } = asRelightError(thrown);
  return notWell("fail", { check, detail: message }, { code });
}

function notWell(
  status: "warn" | "fail",
  what: { readonly check: string; readonly detail: string },
  why: { code: Code } | { next: string },
): Finding {
  return "code" in why
    ? { ...what, status, code: why.code, next: codes[why.code].next }
    : { ...what, status, code: null, next: why.next };
}
