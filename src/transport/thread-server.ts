// SPDX-License-Identifier: Apache-2.0
// The HTTP/1.1 server of one worker thread, on a port that its siblings share. Where there is key material
// it stands behind TLS 1.3, and who asks must be a member of the fleet.

import http, { type IncomingMessage, type ServerResponse } from "node:http";
import https from "node:https";
import { asRelightError, assert, type RelightError } from "../errors.ts";
import { fromNodeError } from "../platform/node-errors.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import { ServerCounters, type ServerWorkerData } from "./http-server-messages.ts";
import { TlsGate } from "./tls-gate.ts";
import { type PlainError, toPlainError } from "./worker.ts";

export interface ThreadServerOptions {
  /** Bytes of an answer that a connection keeps before it asks to wait; Node's default where absent. */
  readonly highWaterMark?: number;
  /** May throw; whoever asks must be a member by now. */
  readonly answer: (request: IncomingMessage, response: ServerResponse) => void;
  readonly refuse: (response: ServerResponse, error: RelightError) => void;
  readonly tell: (
    message:
      | { readonly type: "listening"; readonly port: number }
      | { readonly type: "failed"; readonly error: PlainError },
  ) => void;
}

export interface ThreadServer {
  readonly counters: ServerCounters;
  /** Takes up renewed key material, also for connections that are open. */
  renew(tls: TlsMaterial): void;
}

export function startThreadServer(
  { host, port, limits, tls, counters: cells }: ServerWorkerData,
  { answer, refuse, tell, ...stream }: ThreadServerOptions,
): ThreadServer {
  const counters = new ServerCounters(cells);
  const gate = tls === null ? null : new TlsGate(tls, { limits, counters });
  const options = {
    maxHeaderSize: limits.headBytesMax,
    headersTimeout: limits.headMsMax,
    requestTimeout: limits.headMsMax,
    keepAliveTimeout: limits.idleMsMax,
    connectionsCheckingInterval: 1_000,
    ...stream,
  };
  const server =
    gate === null
      ? http.createServer(options, hear)
      : https.createServer({ ...options, ...gate.options }, hear);
  if (server instanceof https.Server) gate?.guard(server);
  server.maxConnections = limits.connectionsMax;
  server.on("drop", () => counters.strangerRefused());
  server.on("error", (error) => {
    const failure = fromNodeError(error, `listen on ${host}:${port}`);
    tell({ type: "failed", error: toPlainError(failure) });
  });
  server.listen({ host, port, reusePort: true }, () => {
    const address = server.address();
    assert(address !== null && typeof address === "object", "a listening server has an address");
    tell({ type: "listening", port: address.port });
  });

  function hear(request: IncomingMessage, response: ServerResponse): void {
    try {
      gate?.check(request.socket);
      answer(request, response);
    } catch (error) {
      refuse(response, asRelightError(error));
    }
  }

  return {
    counters,
    renew: (renewed) => {
      if (server instanceof https.Server) gate?.renew(server, renewed);
    },
  };
}
