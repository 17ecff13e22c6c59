// SPDX-License-Identifier: Apache-2.0
// A hostile client as a process of its own: calls a coordinator, and reads from a source, as its plan says,
// and prints what it was answered: `ok`, a code of the error table, or how the other side hung up. It
// judges nothing.

import fs from "node:fs";
import net from "node:net";
import tls from "node:tls";
import { type DescMethod, fromJson, type JsonValue } from "@bufbuild/protobuf";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import { P2pService } from "../../src/protocol/gen/p2p_pb.ts";
import { Coordinator, type SessionEvent } from "../../src/protocol/gen/relight_pb.ts";
import { grpcMethod } from "../../src/protocol/grpc.ts";
import { sendFrames } from "./frames.ts";
import { sendMessage } from "./messages.ts";
import type { Answered, ClientPlan, Shown, Step } from "./plan.ts";

const plan = JSON.parse(fs.readFileSync(process.argv[2] ?? "", "utf8")) as ClientPlan;
setTimeout(() => process.exit(1), 150_000).unref();
const answerMsMax = 15_000;
console.log("{}");
for (const step of plan.steps) {
  const answers: Record<string, number> = {};
  for (const answer of await perform(step)) answers[answer] = (answers[answer] ?? 0) + 1;
  console.log(JSON.stringify({ name: step.name, answers } satisfies Answered));
}
process.exit(0);

async function perform(step: Step): Promise<string[]> {
  switch (step.kind) {
    case "call":
      return await Promise.all(Array.from({ length: step.times ?? 1 }, () => call(step)));
    case "session":
      return [await openSession(step)];
    case "guess_bearers":
      return await guessBearers(step.count);
    case "frames":
      return await sendFrames(step.what, await dial(plan.coordinator, step.as, ["h2"]));
    case "message":
      return [await sendMessage(step.what, await dial(plan.coordinator, step.as, ["h2"]))];
    case "bytes":
      return [await readBytes(step)];
    case "drip":
      return [await drip(step)];
    case "half_open":
      return await halfOpen(step.count);
  }
}

function shownBy(name: string | null): Shown | undefined {
  return name === null ? undefined : plan.shown[name];
}

function connect(name: string | null): Client {
  const own = shownBy(name);
  const [key, certificate] =
    own === undefined ? [null, null] : [Buffer.from(own.key), Buffer.from(own.certificate)];
  const authority = Buffer.from(plan.authority);
  const options = { checkServerIdentity: () => undefined };
  return new Client(plan.coordinator, credentials.createSsl(authority, key, certificate, options), {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.max_send_message_length": -1,
  });
}

async function call(step: Step & { kind: "call" }, shared?: Client): Promise<string> {
  const methods: Readonly<Record<string, DescMethod>> =
    step.service === "relight" ? Coordinator.method : P2pService.method;
  const method = methods[step.method];
  if (method === undefined) throw new Error(`There is no method "${step.method}"`);
  const { path, requestSerialize, responseDeserialize } = grpcMethod(method);
  const metadata = new Metadata();
  if (step.bearer !== undefined) metadata.set("authorization", `Bearer ${step.bearer}`);
  const client = shared ?? connect(step.as);
  const request = fromJson(method.input, step.request as JsonValue);
  return await new Promise<string>((resolve) => {
    client.makeUnaryRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      metadata,
      { deadline: Date.now() + answerMsMax },
      (error) => {
        if (shared === undefined) client.close();
        resolve(error === null ? "ok" : codeOf(error));
      },
    );
  });
}

function codeOf(error: { readonly code: number; readonly metadata?: Metadata }): string {
  const named = error.metadata?.get("relight-code")[0];
  return typeof named === "string" ? named : `grpc_${status[error.code]?.toLowerCase()}`;
}

async function openSession({ as, sessionId }: Step & { kind: "session" }): Promise<string> {
  const { path, requestSerialize, responseDeserialize } = grpcMethod(Coordinator.method.session);
  const client = connect(as);
  const stream = client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize);
  const answered = new Promise<string>((resolve) => {
    stream.on("data", ({ kind }: SessionEvent) => {
      if (kind.case === "welcome") resolve(kind.value.resumed ? "resumed" : "new_session");
    });
    stream.on("error", (error: Error & { code: number; metadata?: Metadata }) =>
      resolve(codeOf(error)),
    );
  });
  const hello = { nodeId: "hostile", agentEndpoint: "", sessionId };
  stream.write(fromJson(Coordinator.method.session.input, { hello }));
  const answer = await answered;
  stream.cancel();
  client.close();
  return answer;
}

/** On one connection, as fast as it answers. */
async function guessBearers(count: number): Promise<string[]> {
  const client = connect(null);
  const answers: string[] = [];
  for (let guess = 0; guess < count; guess += 50) {
    const some = Array.from({ length: 50 }, (_, index) => {
      const bearer = `${guess + index}`.padStart(40, "t");
      const step = { name: "", kind: "call", as: null, service: "p2p" } as const;
      return call({ ...step, bearer, method: "listSources", request: {} }, client);
    });
    answers.push(...(await Promise.all(some)));
  }
  client.close();
  return answers;
}

async function dial(
  address: string,
  as: string | null,
  protocols: readonly string[],
): Promise<tls.TLSSocket> {
  const own = shownBy(as);
  const socket = tls.connect({
    ...hostAndPort(address),
    ca: plan.authority,
    ...(own === undefined ? {} : { key: own.key, cert: own.certificate }),
    ...(protocols.length === 0 ? {} : { ALPNProtocols: [...protocols] }),
    checkServerIdentity: () => undefined,
  });
  socket.on("error", () => {});
  await new Promise((resolve) => {
    socket.once("secureConnect", resolve);
    socket.once("close", resolve);
  });
  return socket;
}

/** The code in the answer's body, `http_STATUS`, or `hung_up`. */
async function readBytes({ as, request }: Step & { kind: "bytes" }): Promise<string> {
  const socket = await dial(plan.source, as, []);
  const late = setTimeout(() => socket.destroy(), answerMsMax);
  let text = "";
  socket.on("data", (bytes: Buffer) => {
    text = (text + bytes.toString("latin1")).slice(0, 10_000);
  });
  if (!socket.destroyed) socket.write(request, "latin1");
  await new Promise((resolve) => (socket.closed ? resolve(null) : socket.once("close", resolve)));
  clearTimeout(late);
  const named = /"code":"([a-z_]+)"/.exec(text)?.[1];
  const [, number] = /^HTTP\/1\.1 (\d+)/.exec(text) ?? [];
  return named ?? (number === undefined ? "hung_up" : number === "200" ? "ok" : `http_${number}`);
}

/** `http_408`, or `hung_up` when the other side ends it unheard. */
async function drip({ at, as }: Step & { kind: "drip" }): Promise<string> {
  const socket =
    at === "source" ? await dial(plan.source, as, []) : net.connect(hostAndPort(plan.coordinator));
  let text = "";
  socket.on("data", (bytes: Buffer) => {
    text += bytes.toString("latin1");
  });
  socket.on("error", () => {});
  // The beginning of a ClientHello of 512 bytes, or of a request.
  const begun = at === "source" ? "GET /healthz HTTP/1.1\r\nX-Slow: " : "\x16\x03\x01\x02\x00\x01";
  socket.write(begun, "latin1");
  const timer = setInterval(() => socket.write("a"), 250);
  const late = setTimeout(() => socket.destroy(new Error("still open")), 2 * answerMsMax);
  const isLate = await new Promise<boolean>((resolve) => {
    socket.once("error", (error) => resolve(error.message === "still open"));
    socket.once("close", () => resolve(false));
  });
  clearInterval(timer);
  clearTimeout(late);
  if (isLate) return "still_open";
  return text.startsWith("HTTP/1.1 408 ") ? "http_408" : "hung_up";
}

async function halfOpen(count: number): Promise<string[]> {
  const at = hostAndPort(plan.coordinator);
  const open = Array.from({ length: count }, () => {
    const socket = net.connect(at);
    socket.resume();
    // Begins a handshake: what only connects may wait in the kernel's queue without being seen.
    socket.once("connect", () => socket.write(Buffer.from([0x16])));
    socket.on("error", () => {});
    return new Promise<string>((resolve) => socket.once("close", () => resolve("hung_up")));
  });
  const late = new Promise<string[]>((resolve) => {
    setTimeout(() => resolve(["still_open"]), 120_000).unref();
  });
  return await Promise.race([Promise.all(open), late]);
}

function hostAndPort(address: string): { host: string; port: number } {
  const { hostname: host, port } = new URL(`tcp://${address}`);
  return { host, port: Number(port) };
}
