// SPDX-License-Identifier: Apache-2.0
// Starts a worker thread of this folder, from sources and from the built package alike, and carries
// errors across: what a thread throws arrives as the same RelightError on the other side.

import { Worker } from "node:worker_threads";
import { type Code, type Details, RelightError } from "../errors.ts";
import { workerUrl } from "../platform/worker-url.ts";

export interface PlainError {
  readonly code: Code;
  readonly message: string;
  readonly details: Details;
}

/** `name` without its ending, beside this file. */
export function startWorker(name: string, workerData: unknown): Worker {
  return new Worker(workerUrl(new URL(`./${name}.ts`, import.meta.url)), { workerData, name });
}

export function toPlainError(error: RelightError): PlainError {
  return { code: error.code, message: error.message, details: error.details };
}

export function fromPlainError({ code, message, details }: PlainError): RelightError {
  return new RelightError(code, message, { details });
}
