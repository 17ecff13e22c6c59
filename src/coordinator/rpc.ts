// SPDX-License-Identifier: Apache-2.0
// The shell around a gRPC handler: a signal that ends with the call or its budget, and the one place
// where what a handler throws becomes a status. Handlers themselves know nothing of gRPC.

import {
  type handleUnaryCall,
  Metadata,
  type ServerUnaryCall,
  type ServiceError,
  type StatusObject,
} from "@grpc/grpc-js";
import { asRelightError, RelightError } from "../errors.ts";
import { codeTrailer, grpcStatus } from "../protocol/grpc.ts";

export type Handle<Request, Response> = (
  request: Request,
  signal: AbortSignal,
) => Promise<Response>;

/** Told of every finished call: for metrics and the log. */
export type Observe = (call: { method: string; ms: number; error: RelightError | null }) => void;

export interface RpcOptions {
  /** How long a handler may take, whatever deadline the client set. */
  readonly budgetMs: number;
  readonly observe: Observe;
}

export function unary<Request, Response>(
  method: string,
  handle: Handle<Request, Response>,
  options: RpcOptions,
): handleUnaryCall<Request, Response> {
  return (call, callback) => {
    const startedMs = performance.now();
    const scope = callScope(call, options.budgetMs);
    const finish = (error: RelightError | null): void => {
      scope.close();
      options.observe({ method, ms: performance.now() - startedMs, error });
    };
    handle(call.request, scope.signal).then(
      (response) => {
        finish(null);
        callback(null, response);
      },
      (thrown: unknown) => {
        const error = asRelightError(thrown);
        finish(error);
        callback(asStatus(error));
      },
    );
  };
}

function callScope<Request, Response>(
  call: ServerUnaryCall<Request, Response>,
  budgetMs: number,
): { signal: AbortSignal; close: () => void } {
  const controller = new AbortController();
  const cancel = (): void => controller.abort(new RelightError("cancelled", "The caller hung up"));
  const timer = setTimeout(() => controller.abort(overBudget(budgetMs)), budgetMs);
  call.on("cancelled", cancel);
  return {
    signal: controller.signal,
    close: () => {
      clearTimeout(timer);
      call.off("cancelled", cancel);
    },
  };
}

/** A store that takes longer than the budget has not answered: that is not an empty answer. */
function overBudget(budgetMs: number): RelightError {
  return new RelightError(
    "store_unavailable",
    `Cannot answer: no reply of the store in ${budgetMs} ms`,
  );
}

export function asStatus(error: RelightError): ServiceError & StatusObject {
  const metadata = new Metadata();
  metadata.set(codeTrailer, error.code);
  const { message, name } = error;
  return { name, message, code: grpcStatus(error.code), details: message, metadata };
}
