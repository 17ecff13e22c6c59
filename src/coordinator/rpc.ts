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
import { clockHeader, codeTrailer, grpcStatus } from "../protocol/grpc.ts";
import type { Call } from "../trust/roles.ts";
import type { Access, Admitted, Presented } from "./access.ts";
import { storeBudget } from "./budget.ts";

export type Handle<Request, Response> = (
  request: Request,
  signal: AbortSignal,
  by: Admitted | null,
) => Promise<Response>;

/** Told of every finished call: for metrics and the log. */
export type Observe = (call: { method: string; ms: number; error: RelightError | null }) => void;

export interface RpcOptions {
  /** How long a handler may take, whatever deadline the client set. */
  readonly budgetMs: number;
  readonly observe: Observe;
  readonly access: Access;
}

export interface Method {
  readonly name: string;
  /** In the table of roles. */
  readonly call: Call;
  /** Whether a caller that shows nothing is heard all the same; what it proves, it proves by the request. */
  readonly isOpen?: boolean;
}

/** What a call of any kind shows about its caller. */
type Shown = Pick<ServerUnaryCall<unknown, unknown>, "getAuthContext" | "metadata">;

export function presentedBy(call: Shown): Presented {
  const [authorization] = call.metadata.get("authorization");
  return {
    certificate: call.getAuthContext()?.sslPeerCertificate ?? null,
    authorization: typeof authorization === "string" ? authorization : null,
  };
}

export function unary<Request, Response>(
  { name: method, call: kind, isOpen = false }: Method,
  handle: Handle<Request, Response>,
  options: RpcOptions,
): handleUnaryCall<Request, Response> {
  return (call, callback) => {
    const startedMs = performance.now();
    const budget = storeBudget(options.budgetMs);
    const cancel = (): void => budget.abort(new RelightError("cancelled", "The caller hung up"));
    call.on("cancelled", cancel);
    const finish = (error: RelightError | null): void => {
      budget[Symbol.dispose]();
      call.off("cancelled", cancel);
      options.observe({ method, ms: performance.now() - startedMs, error });
    };
    const answer = async (): Promise<Response> => {
      const presented = presentedBy(call);
      const isNobody = presented.certificate === null && presented.authorization === null;
      const by = isOpen && isNobody ? null : options.access.admit(presented, kind);
      return await handle(call.request, budget.signal, by);
    };
    answer().then(
      (response) => {
        finish(null);
        call.sendMetadata(clockNow());
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

/** A node whose clock is wrong can see it (`relight doctor`). */
function clockNow(): Metadata {
  const metadata = new Metadata();
  metadata.set(clockHeader, String(Date.now()));
  return metadata;
}

export function asStatus(error: RelightError): ServiceError & StatusObject {
  const metadata = new Metadata();
  metadata.set(codeTrailer, error.code);
  const { message, name } = error;
  return { name, message, code: grpcStatus(error.code), details: message, metadata };
}
