// SPDX-License-Identifier: Apache-2.0
// What the threads of the weights' HTTP transport say to those that own them, on both sides, and the form
// of its requests. docs/protocol.md has the bytes.

import { RelightError } from "../errors.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import type { FetchLimits } from "./transport.ts";
import type { PlainError } from "./worker.ts";

export interface SourceRange {
  readonly allocation: number;
  readonly offsetBytes: number;
  readonly bytes: number;
}

export const rangesMax = 256;
/** A request's line with so many ranges, or a call's arguments. */
export const headBytesMax = 64 * 1_024;
export const answerBytesMax = 512 * 2 ** 20;

export type FromServerThread =
  | { readonly type: "listening"; readonly port: number }
  | { readonly type: "failed"; readonly error: PlainError }
  | { readonly type: "call"; readonly id: number; readonly op: string; readonly args: string }
  | {
      readonly type: "read";
      readonly id: number;
      readonly token: string;
      readonly ranges: readonly SourceRange[];
    }
  /** The response was sent, or whoever asked is gone. */
  | { readonly type: "over"; readonly id: number };

export type ToServerThread =
  | { readonly type: "answer"; readonly id: number; readonly body: string }
  | { readonly type: "filled"; readonly id: number; readonly memory: Uint8Array<SharedArrayBuffer> }
  | { readonly type: "refuse"; readonly id: number; readonly error: PlainError }
  | { readonly type: "renew"; readonly tls: TlsMaterial };

export interface ClientData {
  readonly limits: FetchLimits;
  readonly tls: TlsMaterial | null;
}

export type ToClientThread =
  | {
      readonly type: "call";
      readonly id: number;
      readonly endpoint: string;
      readonly op: string;
      readonly args: string;
    }
  | {
      readonly type: "read";
      readonly id: number;
      readonly endpoint: string;
      readonly token: string;
      readonly ranges: readonly SourceRange[];
      readonly into: Uint8Array<SharedArrayBuffer>;
    }
  | { readonly type: "cancel"; readonly id: number }
  | { readonly type: "renew"; readonly tls: TlsMaterial };

export type FromClientThread =
  | { readonly type: "done"; readonly id: number; readonly body: string }
  | { readonly type: "failed"; readonly id: number; readonly error: PlainError };

const prefix = "/v1/weights/";

export type WeightRoute =
  | { readonly kind: "call"; readonly op: string; readonly args: string }
  | { readonly kind: "read"; readonly token: string; readonly ranges: readonly SourceRange[] };

export function callPath(op: string, args: string): string {
  return `${prefix}call/${op}?args=${encodeURIComponent(args)}`;
}

/** Three numbers with dots for each range, with commas between. */
export function readPath(token: string, ranges: readonly SourceRange[]): string {
  const packed = ranges.map((one) => `${one.allocation}.${one.offsetBytes}.${one.bytes}`);
  return `${prefix}read/${token}?ranges=${packed.join(",")}`;
}

const callForm = /^call\/([a-z]{1,32})\?args=([^&#]*)$/;
const readForm = /^read\/([0-9a-f]{32})\?ranges=([0-9.,]*)$/;

/** @throws RelightError `not_found`, `request_invalid` */
export function parseWeightRoute(method: string, url: string): WeightRoute {
  const path = url.startsWith(prefix) ? url.slice(prefix.length) : "";
  const call = callForm.exec(path);
  if (call !== null && method === "POST") {
    return { kind: "call", op: call[1] ?? "", args: decode(call[2] ?? "") };
  }
  const read = readForm.exec(path);
  if (read !== null && method === "GET") {
    return { kind: "read", token: read[1] ?? "", ranges: parseRanges(read[2] ?? "") };
  }
  throw new RelightError("not_found", "Cannot serve the request: want POST call or GET read");
}

function parseRanges(text: string): SourceRange[] {
  const parts = text.split(",");
  if (parts.length > rangesMax) throw invalid(`${parts.length} ranges, at most ${rangesMax}`);
  return parts.map((part) => {
    const numbers = part.split(".").map(Number);
    const [allocation, offsetBytes, bytes] = numbers;
    const isWhole = /^\d{1,16}\.\d{1,16}\.[1-9]\d{0,15}$/.test(part);
    if (!isWhole || allocation === undefined || offsetBytes === undefined || bytes === undefined) {
      throw invalid(`"${part.slice(0, 64)}" for a range`);
    }
    return { allocation, offsetBytes, bytes };
  });
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid("arguments that are not percent-encoded");
  }
}

function invalid(what: string): RelightError {
  return new RelightError("request_invalid", `Cannot read the request: it has ${what}`);
}
