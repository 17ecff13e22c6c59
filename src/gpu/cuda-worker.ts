// SPDX-License-Identifier: Apache-2.0
// The thread that the driver's calls run on. It takes one request after the other and answers each;
// only waits overlap with other requests, because they poll. cuda.ts starts it and speaks to it.

import { parentPort, workerData } from "node:worker_threads";
import { asRelightError, assert, type Code, type Details } from "../errors.ts";
import { CudaCore } from "./cuda-core.ts";
import type {
  ContextHandle,
  DevicePtr,
  EventHandle,
  PairHandle,
  PairMove,
  StreamHandle,
  Wait,
} from "./driver.ts";

/** What a request may name, and what each gives. */
export type Operation = {
  [Name in keyof CudaCore]: CudaCore[Name] extends (...args: never[]) => unknown ? Name : never;
}[keyof CudaCore];

/** Requests that wait for the GPU or for another one: they can be cancelled. */
export type Waiting =
  | { readonly for: "finish"; readonly stream: StreamHandle }
  | { readonly for: "reach"; readonly event: EventHandle }
  | {
      readonly for: "read";
      readonly stream: StreamHandle;
      readonly from: { readonly address: DevicePtr; readonly bytes: number };
    }
  | {
      readonly for: "openPair";
      readonly context: ContextHandle;
      readonly meeting: { readonly id: Uint8Array; readonly rank: 0 | 1 };
    }
  | {
      readonly for: "exchange";
      readonly stream: StreamHandle;
      readonly pair: PairHandle;
      readonly moves: readonly PairMove[];
    };

export type Request =
  | { readonly id: number; readonly operation: Operation; readonly args: readonly unknown[] }
  | { readonly id: number; readonly waiting: Waiting; readonly deadlineMs: number }
  | { readonly cancel: number };

export interface WorkerData {
  readonly ncclLibrary: string;
}

export type Answer =
  | { readonly id: number; readonly value: unknown }
  | {
      readonly id: number;
      readonly error: { readonly code: Code; readonly message: string; readonly details: Details };
    };

assert(parentPort !== null, "cuda-worker.ts runs as a worker thread");
const port = parentPort;
const core = new CudaCore((workerData as WorkerData).ncclLibrary);
const waits = new Map<number, AbortController>();

port.on("message", (request: Request) => {
  if ("cancel" in request) waits.get(request.cancel)?.abort();
  else void answer(request);
});

async function answer(request: Exclude<Request, { cancel: number }>): Promise<void> {
  try {
    const value = await ("waiting" in request ? wait(request) : run(request));
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

async function wait(request: Extract<Request, { waiting: Waiting }>): Promise<unknown> {
  const controller = new AbortController();
  waits.set(request.id, controller);
  try {
    return await begin(request.waiting, {
      signal: controller.signal,
      deadlineMs: request.deadlineMs,
    });
  } finally {
    waits.delete(request.id);
  }
}

function begin(waiting: Waiting, bounds: Wait): Promise<unknown> {
  switch (waiting.for) {
    case "finish":
      return core.finish(waiting.stream, bounds);
    case "reach":
      return core.reach(waiting.event, bounds);
    case "read":
      return core.read(waiting.stream, waiting.from, bounds);
    case "openPair":
      return core.openPair(waiting.context, waiting.meeting, bounds);
    case "exchange":
      return core.exchange(waiting.stream, waiting.pair, { moves: waiting.moves, wait: bounds });
  }
}
