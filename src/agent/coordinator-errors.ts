// SPDX-License-Identifier: Apache-2.0
// gRPC's failures as rows of the error table: the only place where the agent looks at a gRPC status.

import { Metadata, status } from "@grpc/grpc-js";
import { type Code, RelightError } from "../errors.ts";
import { codeNamed, codeTrailer } from "../protocol/grpc.ts";

/** What only the coordinator can repair keeps its code, and what names its own remedy; the rest is a refusal. */
const passed = new Set<Code>([
  "store_unavailable",
  "store_corrupt",
  "store_newer",
  "deadline_exceeded",
  "token_invalid",
  "unauthenticated",
  "certificate_revoked",
  "role_denied",
  "ep_capacity",
  "ep_config_differs",
  "ep_epoch_changed",
  "ep_operation_open",
  "ep_committed",
  "ep_evicted",
]);

export function fromGrpc(error: unknown, what: string): RelightError {
  const { code, details, metadata } = fieldsOf(error);
  const named = codeNamed(metadata?.get(codeTrailer)[0]);
  const message = `Cannot complete ${what}: ${plain(details)}`;
  if (named !== undefined) {
    const own = passed.has(named) ? named : "coordinator_refused";
    return new RelightError(own, message, { details: { coordinatorCode: named }, cause: error });
  }
  return new RelightError(codeOfStatus(code), message, {
    details: { grpcStatus: code },
    cause: error,
  });
}

/** Without the frame that grpc-js puts around what the socket said. */
function plain(details: string): string {
  return details
    .replace(/^No connection established\. Last error: (?:Error: )?/, "")
    .replace(/\.? ?Resolution note: ?$/, "");
}

function codeOfStatus(code: number): Code {
  if (code === status.UNAVAILABLE) return "coordinator_unreachable";
  if (code === status.DEADLINE_EXCEEDED) return "deadline_exceeded";
  return code === status.CANCELLED ? "cancelled" : "coordinator_refused";
}

function fieldsOf(error: unknown): {
  code: number;
  details: string;
  metadata: Metadata | undefined;
} {
  const fields = error instanceof Error ? error : new Error(String(error));
  const code = "code" in fields && typeof fields.code === "number" ? fields.code : status.UNKNOWN;
  const details =
    "details" in fields && typeof fields.details === "string" ? fields.details : fields.message;
  const metadata =
    "metadata" in fields && fields.metadata instanceof Metadata ? fields.metadata : undefined;
  return { code, details, metadata };
}

export function cancelled(message: string, cause?: unknown): RelightError {
  return new RelightError("cancelled", message, { cause });
}
