// SPDX-License-Identifier: Apache-2.0
// A hostile peer as a process of its own: publishes to a real coordinator like any replica, or is named by
// a hostile one, and answers targets as its plan says. It forges nothing itself; forge.ts has put
// everything into the plan. After its first line it prints how much of a manifest without end it was rid
// of.

import fs from "node:fs";
import http, { type IncomingMessage, type ServerResponse } from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { connectCoordinator } from "../../src/agent/coordinator-client.ts";
import { toSourceIdentity } from "../../src/agent/identity-wire.ts";
import { parseRanges } from "../../src/core/pieces.ts";
import { frameBytes, writeFrame } from "../../src/transport/http-frame.ts";
import {
  type HostilePlan,
  type HostileSource,
  identityFor,
  type Listening,
  type Shown,
  type StatementAnswer,
} from "./plan.ts";

const plan = JSON.parse(fs.readFileSync(process.argv[2] ?? "", "utf8")) as HostilePlan;
const deadline = AbortSignal.timeout(120_000);
deadline.addEventListener("abort", () => process.exit(1));
const publish = plan.coordinator === null ? async () => {} : await openPublisher(plan.coordinator);
const endpoints: string[] = [];
for (const [index, source] of plan.sources.entries()) {
  const hear = (request: IncomingMessage, response: ServerResponse) =>
    answer(source, request, response);
  const server = plan.tls === null ? http.createServer(hear) : secureServer(plan.tls, hear);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const endpoint = `${plan.tls === null ? "http" : "https"}://127.0.0.1:${port}`;
  await publish(source, index, endpoint);
  endpoints.push(endpoint);
}
console.log(JSON.stringify({ endpoints } satisfies Listening));

function secureServer({ key, certificate }: Shown, hear: http.RequestListener): https.Server {
  const options = { key, cert: certificate, requestCert: true, rejectUnauthorized: false };
  return https.createServer(options, hear);
}

async function openPublisher(address: string) {
  const client = connectCoordinator({ address, timeoutMs: 5_000 });
  const hello = { nodeId: "hostile", agentEndpoint: "http://127.0.0.1:1" };
  const session = await client.openSession(hello, deadline);
  return async (source: HostileSource, index: number, endpoint: string): Promise<void> => {
    const artifact = {
      artifactId: source.artifactId,
      family: source.family,
      totalBytes: source.totalBytes,
      fileCount: 1,
      pieceCount: source.pieces.length,
      baseArtifactIds: [],
    };
    await client.publish(
      {
        sessionId: session.id,
        identity: toSourceIdentity(identityFor(source.family)),
        workerId: `hostile-${process.pid}-${index}`,
        artifact,
        endpoints: [endpoint],
        complete: true,
        status: "ready",
      },
      deadline,
    );
  };
}

function answer(source: HostileSource, request: IncomingMessage, response: ServerResponse): void {
  const [path = "", query = ""] = (request.url ?? "").split("?");
  if (path.endsWith("/statement")) answerStatement(source, response);
  else if (path.endsWith("/manifest")) send(response, Buffer.from(source.manifest, "base64"));
  else if (path.endsWith("/have")) send(response, haveAll(source.pieces.length));
  else if (path.endsWith("/pieces")) send(response, framed(source, query));
  else response.writeHead(404, { "Content-Length": 0 }).end();
}

function answerStatement({ statement }: HostileSource, response: ServerResponse): void {
  switch (statement.kind) {
    case "bytes":
      send(response, Buffer.from(statement.base64, "base64"));
      break;
    case "missing":
      response.writeHead(404, { "Content-Length": 0 }).end();
      break;
    case "huge":
      response.writeHead(200, { "Content-Length": statement.bytes });
      pour(response);
      break;
    case "entries":
      void sendEntries(statement, response);
      break;
    case "chunked":
      response.writeHead(200);
      pour(response);
      break;
    case "drip":
      response.writeHead(200, { "Content-Length": 1_000_000 });
      setInterval(() => response.write("{"), 100).unref();
      break;
    case "endless_head":
      response.socket?.write("HTTP/1.1 200 OK\r\n");
      setInterval(() => response.socket?.write(`X-${"a".repeat(4_000)}: b\r\n`), 1).unref();
      break;
    case "silent":
      break;
    case "extra_body": {
      const body = Buffer.from(statement.base64, "base64");
      const head = `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\nContent-Length: 5\r\n\r\n`;
      response.socket?.write(Buffer.concat([Buffer.from(head), body]));
    }
  }
}

const entry = (index: number) =>
  `{"digest":{"blake3":"${"a".repeat(64)}"},"name":"k/${String(index).padStart(10, "0")}.bin"},`;

/** As many as it says or until nobody takes them. */
async function sendEntries(
  { count, announcedBytes }: StatementAnswer & { kind: "entries" },
  response: ServerResponse,
): Promise<void> {
  const batch = 10_000;
  const { socket } = response;
  response.writeHead(200, { "Content-Length": announcedBytes ?? count * entry(0).length });
  response.flushHeaders();
  let sent = 0;
  for (let at = 0; at < count && socket?.destroyed === false; at += batch) {
    // To the socket itself: node:http would not send more than was announced.
    const bytes = Buffer.from(
      Array.from({ length: batch }, (_, index) => entry(at + index)).join(""),
    );
    sent += bytes.length;
    if (!socket.write(bytes))
      await new Promise((resolve) => {
        socket.once("drain", resolve);
        socket.once("close", resolve);
      });
  }
  console.log(`sent ${sent}`);
}

/** Without end, as fast as it is taken. */
function pour(response: ServerResponse): void {
  const block = Buffer.alloc(256 * 1_024, "{");
  const more = () => {
    while (!response.destroyed && response.write(block)) {
      // Until the socket's buffer is full.
    }
  };
  response.on("drain", more);
  more();
}

function haveAll(count: number): Buffer {
  return Buffer.alloc(Math.ceil(count / 8), 0xff);
}

function framed({ pieces, isMislabelled }: HostileSource, query: string): Buffer {
  const ranges = query.replace("ranges=", "");
  const wanted = parseRanges(ranges, { size: pieces.length, countMax: pieces.length });
  return Buffer.concat(
    wanted.map((piece) => {
      const bytes = Buffer.from(pieces[piece] ?? "", "base64");
      const frame = Buffer.alloc(frameBytes);
      const number = isMislabelled ? piece + 1 : piece;
      writeFrame(frame, 0, { piece: number, length: bytes.length, isRefused: false });
      return Buffer.concat([frame, bytes]);
    }),
  );
}

function send(response: ServerResponse, body: Buffer): void {
  response.writeHead(200, { "Content-Length": body.length }).end(body);
}
