// SPDX-License-Identifier: Apache-2.0
// The thread that the driver's calls run on. It takes one request after the other and answers each;
// only waits overlap with other requests, because they poll. cuda.ts starts it and speaks to it.

import { parentPort } from "node:worker_threads";
import { asRelightError, assert, type Code, type Details } from "../errors.ts";
import { CudaCore } from "./cuda-core.ts";
import type { DevicePtr, StreamHandle } from "./driver.ts";

/** What a request may name, and what each gives. */
export type Operation = {
  [Name in keyof CudaCore]: CudaCore[Name] extends (...args: never[]) => unknown ? Name : never;
}[keyof CudaCore];

export type Request =
  | { readonly id: number; readonly operation: Operation; readonly args: readonly unknown[] }
  | {
      readonly id: number;
      readonly operation: "finish" | "read";
      readonly stream: StreamHandle;
      readonly from: { readonly address: DevicePtr; readonly bytes: number } | null;
      readonly deadlineMs: number;
    }
  | { readonly cancel: number };

export type Answer =
  | { readonly id: number; readonly value: unknown }
  | {
      readonly id: number;
      readonly error: { readonly code: Code; readonly message: string; readonly details: Details };
    };

assert(parentPort !== null, "cuda-worker.ts runs as a worker thread");
const port = parentPort;
const core = new CudaCore();
const waits = new Map<number, AbortController>();

port.on("message", (request: Request) => {
  if ("cancel" in request) waits.get(request.cancel)?.abort();
  else void answer(request);
});

async function answer(request: Exclude<Request, { cancel: number }>): Promise<void> {
  try {
    const value = await ("stream" in request ? wait(request) : run(request));
    port.postMessage({ id: request.id, value } satisfies Answer);
  } catch (cause) {
    const { code, message, details } = asRelightError(cause);
    port.postMessage({ id: request.id, error: { code, message, details } } satisfies Answer);
  }
}

function run(request: { operation: Operation; args: readonly unknown[] }): unknown {
  // The arguments come from cuda.ts, whose `#call` has typed them against this very method.
  const method = core[request.operation] as (...args: readonly unknown[]) => unknown;
  return method.apply(core, [...request.args]);
}

async function wait(request: Extract<Request, { stream: StreamHandle }>): Promise<unknown> {
  const controller = new AbortController();
  waits.set(request.id, controller);
  const bounds = { signal: controller.signal, deadlineMs: request.deadlineMs };
  try {
    if (request.from !== null) return await core.read(request.stream, request.from, bounds);
    return await core.finish(request.stream, bounds);
  } finally {
    waits.delete(request.id);
  }
}
