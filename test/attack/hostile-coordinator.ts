// SPDX-License-Identifier: Apache-2.0
// A hostile coordinator as a process of its own: whoever calls it is told what its plan says. On its
// second line and on it prints which calls it got, so that the suite knows what was told to it.

import fs from "node:fs";
import { create } from "@bufbuild/protobuf";
import {
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type sendUnaryData,
} from "@grpc/grpc-js";
import { toSourceIdentity } from "../../src/agent/identity-wire.ts";
import {
  Coordinator,
  EnrolResponseSchema,
  type FindRequest,
  type FindResponse,
  FindResponseSchema,
  PublishResponseSchema,
  ReportBootResponseSchema,
  type SessionEvent,
  SessionEventSchema,
  type SessionRequest,
  WithdrawResponseSchema,
} from "../../src/protocol/gen/relight_pb.ts";
import { grpcMethod } from "../../src/protocol/grpc.ts";
import { sourceIdOf } from "../../src/protocol/source-id.ts";
import { type CoordinatorPlan, identityFor, type ListedSource, type Listening } from "./plan.ts";

const plan = JSON.parse(fs.readFileSync(process.argv[2] ?? "", "utf8")) as CoordinatorPlan;
const deadline = AbortSignal.timeout(120_000);
deadline.addEventListener("abort", () => process.exit(1));
/** Above what a target takes, which is what "endless" sends. */
const answerBytes = 101 * 1_024 * 1_024;
const listed = Map.groupBy(plan.listed, ({ family }) =>
  sourceIdOf(toSourceIdentity(identityFor(family))),
);

const server = new Server({ "grpc.max_send_message_length": -1 });
const { session, find, publish, withdraw, reportBoot, enrol } = Coordinator.method;
serve(find, answerFind);
serve(publish, (_call, reply) => reply(null, create(PublishResponseSchema)));
serve(withdraw, (_call, reply) => reply(null, create(WithdrawResponseSchema)));
serve(reportBoot, (_call, reply) => reply(null, create(ReportBootResponseSchema)));
serve(enrol, (_call, reply) => {
  if (plan.enrol === null) return reply(new Error("nobody is enrolled here"));
  const certificate = fromBase64(plan.enrol.certificate);
  const policy = fromBase64(plan.enrol.policy);
  const authorities = plan.enrol.authorities.map(fromBase64);
  reply(null, create(EnrolResponseSchema, { certificate, policy, authorities, environment: "" }));
});
server.addService({ session: grpcMethod(session) }, { session: hearSession });
server.bindAsync("127.0.0.1:0", credentials(), (error, port) => {
  if (error !== null) throw error;
  console.log(JSON.stringify({ endpoints: [`127.0.0.1:${port}`] } satisfies Listening));
});

function credentials(): ServerCredentials {
  if (plan.tls === null) return ServerCredentials.createInsecure();
  const pair = {
    private_key: Buffer.from(plan.tls.key),
    cert_chain: Buffer.from(plan.tls.certificate),
  };
  return ServerCredentials.createSsl(null, [pair], false);
}

function serve<Request, Response>(
  method: Parameters<typeof grpcMethod>[0],
  answer: (call: ServerUnaryCall<Request, Response>, reply: sendUnaryData<Response>) => void,
): void {
  const handle = (call: ServerUnaryCall<Request, Response>, reply: sendUnaryData<Response>) => {
    console.log(`called ${method.name}`);
    answer(call, reply);
  };
  server.addService({ [method.localName]: grpcMethod(method) }, { [method.localName]: handle });
}

function answerFind(
  { request }: ServerUnaryCall<FindRequest, FindResponse>,
  reply: sendUnaryData<FindResponse>,
): void {
  if (plan.find === "silent") return;
  const asked = plan.find === "one_too_few" ? request.identities.slice(1) : request.identities;
  const results = asked.map((identity) => {
    const sourceId = sourceIdOf(identity);
    const sources = (listed.get(sourceId) ?? []).flatMap((source) => found(sourceId, source));
    return { sourceId, sources };
  });
  const endless = { sourceId: "x".repeat(answerBytes), sources: [] };
  const told = plan.find === "endless" ? [...results, endless] : results;
  if (plan.find === "garbage") reply(new Error("\u0000\r\nrelight-code: ok"));
  else reply(null, create(FindResponseSchema, { results: told }));
}

function found(sourceId: string, { endpoint, identity, times, ...source }: ListedSource) {
  const { artifactId, family, totalBytes } = source;
  return Array.from({ length: times }, (_, index) => ({
    sourceId,
    workerId: `listed-${index}`,
    endpoints: [endpoint],
    identity,
    complete: true,
    artifact: { artifactId, family, totalBytes: BigInt(totalBytes), fileCount: 1, pieceCount: 2 },
  }));
}

function hearSession(call: ServerDuplexStream<SessionRequest, SessionEvent>): void {
  console.log("called Session");
  call.on("error", () => {});
  call.on("end", () => call.end());
  call.on("data", ({ kind }: SessionRequest) => {
    if (kind.case === "goodbye") call.end();
    if (kind.case !== "hello") return;
    const value = { sessionId: "mine", heartbeatMs: 500, graceMs: 4_000, resumed: false };
    tell(call, { case: "welcome", value });
    for (const policy of plan.policies) tell(call, { case: "policy", value: fromBase64(policy) });
    if (plan.floodBytes > 0) flood(call);
  });
}

/** As fast as it is taken. */
function flood(call: ServerDuplexStream<SessionRequest, SessionEvent>): void {
  const value = Buffer.alloc(plan.floodBytes, "{");
  const more = () => {
    while (!call.cancelled && !call.destroyed && tell(call, { case: "policy", value })) {
      // Until the stream's buffer is full.
    }
  };
  call.on("drain", more);
  more();
}

function tell(
  call: ServerDuplexStream<SessionRequest, SessionEvent>,
  kind: Exclude<SessionEvent["kind"], { case: undefined }> | { case: "welcome"; value: object },
): boolean {
  return call.write(create(SessionEventSchema, { kind } as Parameters<typeof create>[1]));
}

function fromBase64(text: string): Buffer {
  return Buffer.from(text, "base64");
}
