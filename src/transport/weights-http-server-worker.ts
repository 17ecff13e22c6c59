// SPDX-License-Identifier: Apache-2.0
// One thread that serves weights over HTTP/1.1, on a port that its siblings share. It decides nothing:
// each request goes to the thread that owns the GPU, whose answer lies in memory that both see.

import type { IncomingMessage, ServerResponse } from "node:http";
import { parentPort, workerData } from "node:worker_threads";
import { assert, codes, RelightError } from "../errors.ts";
import type { ServerWorkerData } from "./http-server-messages.ts";
import { startThreadServer } from "./thread-server.ts";
import {
  type FromServerThread,
  parseWeightRoute,
  type ToServerThread,
} from "./weights-http-messages.ts";
import { fromPlainError } from "./worker.ts";

assert(parentPort !== null, "the weights server runs as a worker thread");
const parent = parentPort;
const data = workerData as ServerWorkerData;
const { limits } = data;

interface Pending {
  readonly response: ServerResponse;
  sendingSinceMs: number | null;
}

const pending = new Map<number, Pending>();
let nextId = 1;

const { counters, renew } = startThreadServer(data, {
  highWaterMark: 2 ** 20,
  answer: forward,
  refuse,
  tell,
});
parent.on("message", receive);
setInterval(dropSlowReaders, 1_000);

function forward(request: IncomingMessage, response: ServerResponse): void {
  const { headers } = request;
  if ((headers["content-length"] ?? "0") !== "0" || headers["transfer-encoding"] !== undefined) {
    response.setHeader("Connection", "close");
    throw new RelightError("request_invalid", "Cannot serve the request: want it without a body");
  }
  const route = parseWeightRoute(request.method ?? "", request.url ?? "");
  const id = nextId++;
  pending.set(id, { response, sendingSinceMs: null });
  response.on("close", () => {
    pending.delete(id);
    tell({ type: "over", id });
  });
  if (route.kind === "call") tell({ type: "call", id, op: route.op, args: route.args });
  else tell({ type: "read", id, token: route.token, ranges: route.ranges });
}

function receive(message: ToServerThread): void {
  if (message.type === "renew") {
    renew(message.tls);
    return;
  }
  const waiting = pending.get(message.id);
  // Whoever asked is gone, and the owner has been told.
  if (waiting === undefined) return;
  const { response } = waiting;
  waiting.sendingSinceMs = performance.now();
  if (message.type === "refuse") {
    refuse(response, fromPlainError(message.error));
    return;
  }
  const isBytes = message.type === "filled";
  const body = isBytes ? bufferOver(message.memory) : Buffer.from(message.body);
  response.setHeader("Content-Type", isBytes ? "application/octet-stream" : "application/json");
  response.setHeader("Content-Length", body.length);
  response.end(body);
  if (isBytes) counters.sent(body.length);
}

function bufferOver({ buffer, byteOffset, byteLength }: Uint8Array<SharedArrayBuffer>): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength) as Buffer;
}

function refuse(response: ServerResponse, error: RelightError): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const { code, message, details } = error;
  const body = Buffer.from(JSON.stringify({ code, message, details }));
  response.statusCode = codes[code].http;
  response.setHeader("Content-Type", "application/json");
  response.setHeader("Content-Length", body.length);
  response.end(body);
}

/** A reader that takes longer than its limit for one range holds memory that others wait for. */
function dropSlowReaders(): void {
  const nowMs = performance.now();
  for (const { response, sendingSinceMs } of pending.values()) {
    if (sendingSinceMs !== null && nowMs - sendingSinceMs > limits.readerSilenceMsMax) {
      response.destroy();
    }
  }
}

function tell(message: FromServerThread): void {
  parent.postMessage(message);
}
