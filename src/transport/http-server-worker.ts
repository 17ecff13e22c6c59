// SPDX-License-Identifier: Apache-2.0
// One thread of the piece server: node:http, which is fast on the sending side. Reads synchronously, so
// that only this thread waits for the disk.

import fs from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { parentPort, workerData } from "node:worker_threads";
import type { Hex32 } from "../core/digest.ts";
import { parseRanges } from "../core/pieces.ts";
import { assert, type Code, codes, RelightError } from "../errors.ts";
import { loadSocketSender, type SocketSender } from "../platform/socket-sender.ts";
import { BufferPool } from "./buffer-pool.ts";
import { bodyBytes, Pump, type Segment } from "./http-pump.ts";
import { type ByteSpan, parseByteRange, parseRoute, type Route } from "./http-route.ts";
import type { FromServer, ServerWorkerData, ToServer } from "./http-server-messages.ts";
import { openOffered } from "./offered-file.ts";
import { ServedArtifact } from "./served-artifact.ts";
import { startThreadServer } from "./thread-server.ts";

assert(parentPort !== null, "the piece server runs as a worker thread");
const parent = parentPort;
const data = workerData as ServerWorkerData;
const { limits } = data;
const artifacts = new Map<Hex32, ServedArtifact>();
const pumps = new Map<Pump, ServerResponse>();
const pool = new BufferPool({ bufferBytes: limits.bufferBytes, keptMax: 2 * limits.readersMax });

/** Not behind TLS. Until it is loaded, and without it, bytes pass through this thread. */
let sender: SocketSender | null = null;

const { counters, renew } = startThreadServer(data, {
  answer,
  refuse,
  tell: (message) => {
    tell(message);
    const isPlain = message.type === "listening" && data.tls === null;
    if (isPlain) void loadSocketSender().then((loaded) => (sender = loaded));
  },
});

parent.on("message", (message: ToServer) => {
  receive(message);
  tell({ type: "done", sequence: message.sequence });
});

setInterval(dropSlowReaders, 1_000);

function receive(message: ToServer): void {
  switch (message.type) {
    case "offer":
      artifacts.set(message.offer.artifactId, new ServedArtifact(message.offer, reportChanged));
      return;
    case "relocate":
      artifacts.get(message.artifactId)?.relocate(message.files);
      return;
    case "withdraw":
      artifacts.delete(message.artifactId);
      return;
    case "renew":
      renew(message.tls);
  }
}

function answer(request: IncomingMessage, response: ServerResponse): void {
  if (request.method !== "GET" && request.method !== "HEAD") {
    response.setHeader("Connection", "close");
    throw new RelightError("request_invalid", "Cannot serve the request: want GET or HEAD");
  }
  if (request.headers["content-length"] !== undefined || request.headers["transfer-encoding"]) {
    response.setHeader("Connection", "close");
    throw new RelightError("request_invalid", "Cannot serve the request: want it without a body");
  }
  const route = parseRoute(request.url ?? "");
  if (route.kind === "pieces") sendPieces(request, response, route);
  else if (route.kind === "file") sendFile(request, response, route);
  else sendSmall(request, response, smallBody(route));
}

interface SmallBody {
  readonly type: string;
  readonly body: Buffer;
}

function smallBody(
  route: Route & { kind: "health" | "manifest" | "statement" | "have" },
): SmallBody {
  switch (route.kind) {
    case "health":
      return { type: "text/plain", body: Buffer.from("ok\n") };
    case "manifest":
      return { type: "application/json", body: artifact(route).manifest };
    case "statement":
      return { type: "application/vnd.dsse.envelope.v1+json", body: artifact(route).statement };
    case "have":
      return {
        type: "application/octet-stream",
        body: Buffer.from(artifact(route).haveBytes()),
      };
  }
}

function artifact({ artifactId }: { artifactId: Hex32 }): ServedArtifact {
  const served = artifacts.get(artifactId);
  if (served === undefined) {
    throw new RelightError(
      "not_found",
      `Cannot serve artifact ${artifactId}: it is not offered here`,
    );
  }
  return served;
}

function sendPieces(
  request: IncomingMessage,
  response: ServerResponse,
  route: Route & { kind: "pieces" },
): void {
  const served = artifact(route);
  const pieces = parseRanges(route.ranges, {
    size: served.pieceCount,
    countMax: limits.piecesPerRequestMax,
  });
  const segments = served.pieceSegments(pieces);
  const bytes = bodyBytes(segments);
  if (bytes > limits.bytesPerRequestMax) {
    throw new RelightError(
      "request_invalid",
      `Cannot give ${bytes} bytes at once: want at most ${limits.bytesPerRequestMax}`,
    );
  }
  response.setHeader("Content-Type", "application/vnd.relight.pieces");
  response.setHeader("Content-Length", bytes);
  sendSegments(request, response, { served, segments });
}

function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  route: Route & { kind: "file" },
): void {
  const served = artifact(route);
  const file = served.wholeFile(route.fileIndex);
  if (file.inline === null) {
    const handle = openOffered(file);
    if (handle === null) {
      served.lost(route.fileIndex);
      throw new RelightError("source_gone", `Cannot serve file ${route.fileIndex}: it has changed`);
    }
    fs.closeSync(handle);
  }
  const span = rangeOf(request, response, file.size);
  response.setHeader("Content-Type", "application/octet-stream");
  response.setHeader("Accept-Ranges", "bytes");
  response.setHeader("Content-Length", span.length);
  const segments: Segment[] =
    span.length === 0
      ? []
      : [{ frame: null, fileIndex: route.fileIndex, ...span, isRefused: false }];
  sendSegments(request, response, { served, segments });
}

/** Sets status and Content-Range; a range that can not be had ends as 416. */
function rangeOf(request: IncomingMessage, response: ServerResponse, size: number): ByteSpan {
  try {
    const span = parseByteRange(request.headers.range, size);
    if (span === null) return { offset: 0, length: size };
    response.statusCode = 206;
    response.setHeader(
      "Content-Range",
      `bytes ${span.offset}-${span.offset + span.length - 1}/${size}`,
    );
    return span;
  } catch (error) {
    response.statusCode = 416;
    response.setHeader("Content-Range", `bytes */${size}`);
    throw error;
  }
}

function sendSegments(
  request: IncomingMessage,
  response: ServerResponse,
  { served, segments }: { served: ServedArtifact; segments: readonly Segment[] },
): void {
  if (request.method === "HEAD") {
    response.end();
    return;
  }
  if (!counters.admit(limits.readersMax)) {
    response.removeHeader("Content-Length");
    response.removeHeader("Content-Range");
    response.setHeader("Retry-After", Math.ceil(limits.retryAfterMs / 1_000));
    throw new RelightError("source_busy", `Cannot serve more than ${limits.readersMax} readers`);
  }
  const pump = new Pump({
    response,
    segments,
    source: served,
    pool,
    sender,
    onSent: (bytes) => counters.sent(bytes),
  });
  pumps.set(pump, response);
  response.on("close", () => {
    pump.stop();
    pumps.delete(pump);
    counters.release();
  });
  pump.start();
}

function sendSmall(
  request: IncomingMessage,
  response: ServerResponse,
  { type, body }: SmallBody,
): void {
  response.setHeader("Content-Type", type);
  response.setHeader("Content-Length", body.length);
  response.end(request.method === "HEAD" ? undefined : body);
}

function refuse(response: ServerResponse, error: RelightError): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const body = `${JSON.stringify({ code: error.code, message: error.message })}\n`;
  if (response.statusCode === 200 || response.statusCode === 206) {
    response.statusCode = codes[error.code satisfies Code].http;
  }
  response.setHeader("Content-Type", "application/json");
  response.setHeader("Content-Length", Buffer.byteLength(body));
  response.end(body);
}

/** A reader that takes longer than its limit for one buffer holds a place that others wait for. */
function dropSlowReaders(): void {
  const nowMs = performance.now();
  for (const [pump, response] of pumps) {
    const sinceMs = pump.waitingSinceMs;
    if (sinceMs !== null && nowMs - sinceMs > limits.readerSilenceMsMax) response.destroy();
  }
}

function reportChanged(artifactId: Hex32, fileIndex: number): void {
  tell({ type: "changed", artifactId, fileIndex });
}

function tell(message: FromServer): void {
  parent.postMessage(message);
}
