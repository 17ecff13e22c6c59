// SPDX-License-Identifier: Apache-2.0
// One thread that serves weights over HTTP/1.1, on a port that its siblings share. It decides nothing:
// each request goes to the thread that owns the GPU, whose answer lies in memory that both see.

import http, { type IncomingMessage, type ServerResponse } from "node:http";
import https from "node:https";
import { parentPort, workerData } from "node:worker_threads";
import { asRelightError, assert, codes, RelightError } from "../errors.ts";
import { fromNodeError } from "../platform/node-errors.ts";
import { ServerCounters } from "./http-server-messages.ts";
import { TlsGate } from "./tls-gate.ts";
import {
  type FromServerThread,
  parseWeightRoute,
  type ServerData,
  type ToServerThread,
} from "./weights-http-messages.ts";
import { fromPlainError, toPlainError } from "./worker.ts";

assert(parentPort !== null, "the weights server runs as a worker thread");
const parent = parentPort;
const { host, port, limits, tls, counters: cells } = workerData as ServerData;
const counters = new ServerCounters(cells);

interface Pending {
  readonly response: ServerResponse;
  sendingSinceMs: number | null;
}

const pending = new Map<number, Pending>();
let nextId = 1;

const timing = {
  maxHeaderSize: limits.headBytesMax,
  headersTimeout: limits.headMsMax,
  requestTimeout: limits.headMsMax,
  keepAliveTimeout: limits.idleMsMax,
  connectionsCheckingInterval: 1_000,
  highWaterMark: 2 ** 20,
};
const gate = tls === null ? null : new TlsGate(tls, { limits, counters });
const server =
  gate === null
    ? http.createServer(timing, hear)
    : https.createServer({ ...timing, ...gate.options }, hear);
if (server instanceof https.Server) gate?.guard(server);
server.maxConnections = limits.connectionsMax;
server.on("drop", () => counters.strangerRefused());
server.on("error", (error) => {
  tell({ type: "failed", error: toPlainError(fromNodeError(error, `listen on ${host}:${port}`)) });
});
server.listen({ host, port, reusePort: true }, () => {
  const address = server.address();
  assert(address !== null && typeof address === "object", "a listening server has an address");
  tell({ type: "listening", port: address.port });
});

parent.on("message", receive);
setInterval(dropSlowReaders, 1_000);

function hear(request: IncomingMessage, response: ServerResponse): void {
  try {
    gate?.check(request.socket);
    forward(request, response);
  } catch (error) {
    fail(response, asRelightError(error));
  }
}

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
    if (server instanceof https.Server) gate?.renew(server, message.tls);
    return;
  }
  const waiting = pending.get(message.id);
  // Whoever asked is gone, and the owner has been told.
  if (waiting === undefined) return;
  const { response } = waiting;
  waiting.sendingSinceMs = performance.now();
  if (message.type === "refuse") {
    fail(response, fromPlainError(message.error));
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

function fail(response: ServerResponse, error: RelightError): void {
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
