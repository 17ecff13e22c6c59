// SPDX-License-Identifier: Apache-2.0
// The HTTP face: `/healthz` (the process runs), `/readyz` (the store answers), `/metrics`, and what
// ep-http.ts answers about expert groups, which is all that can be changed here.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { JsonValue } from "@bufbuild/protobuf";
import { asRelightError, RelightError } from "../errors.ts";
import { storeBudget } from "./budget.ts";
import type { EpHttp } from "./ep-http.ts";

export interface HttpFace {
  /** Rejects when the coordinator can not serve now. */
  readonly probe: (signal: AbortSignal) => Promise<void>;
  readonly metrics: { readonly contentType: string; readonly text: () => Promise<string> };
  readonly budgetMs: number;
  readonly ep: Pick<EpHttp, "answer">;
}

export const httpLimits = {
  connectionsMax: 256,
  /** For the whole head of a request. */
  headMsMax: 5_000,
  headBytesMax: 16_384,
} as const;

export function httpServer(
  face: HttpFace,
  { connectionsMax, headMsMax, headBytesMax }: Record<keyof typeof httpLimits, number> = httpLimits,
): Server {
  const timing = {
    headersTimeout: headMsMax,
    requestTimeout: headMsMax,
    maxHeaderSize: headBytesMax,
    // Node looks every 30 s otherwise, and a stranger would have as long.
    connectionsCheckingInterval: Math.min(1_000, headMsMax),
  };
  const server = createServer(timing, (request, response) => {
    answer(face, request, response).catch((error: unknown) => {
      const { code, message, facts } = asRelightError(error);
      send(response, facts.http, { code, message });
    });
  });
  server.maxConnections = connectionsMax;
  return server;
}

async function answer(
  face: HttpFace,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const answered = await face.ep.answer(request);
  if (answered !== null) return send(response, answered.status, answered.body);
  if (request.method !== "GET" && request.method !== "HEAD") {
    response.setHeader("allow", "GET, HEAD");
    send(response, 405, { code: "request_invalid", message: "Cannot answer: wanted GET" });
    return;
  }
  const [path] = (request.url ?? "").split("?");
  switch (path) {
    case "/healthz":
      return send(response, 200, { status: "ok" });
    case "/readyz": {
      using budget = storeBudget(face.budgetMs);
      await face.probe(budget.signal);
      return send(response, 200, { status: "ready" });
    }
    case "/metrics":
      response.setHeader("content-type", face.metrics.contentType);
      response.end(await face.metrics.text());
      return;
    default:
      throw new RelightError(
        "not_found",
        "Cannot answer: no such page; try /healthz, /readyz or /metrics",
      );
  }
}

function send(response: ServerResponse, status: number, body: JsonValue): void {
  response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store" });
  response.end(`${JSON.stringify(body)}\n`);
}

/** The port as bound. @throws RelightError `port_in_use`. */
export function bindHttp(
  server: Server,
  at: { readonly host: string; readonly port: number },
): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once("error", (cause) => {
      const message = `Cannot listen on ${at.host}:${at.port}: ${cause.message}`;
      reject(new RelightError("port_in_use", message, { cause }));
    });
    server.listen(at.port, at.host, () => {
      const bound = server.address();
      resolve(typeof bound === "object" && bound !== null ? bound.port : at.port);
    });
  });
}

export function closeHttp(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
