// SPDX-License-Identifier: Apache-2.0
// Operations on expert groups for launchers that speak HTTP: `/v1/ep`, `/v1/ep/GROUP`,
// `/v1/ep/GROUP/operations`, `/v1/ep/GROUP/operations/ID`. Bodies are the messages of ep.proto as JSON.

import type { IncomingMessage } from "node:http";
import {
  type DescMessage,
  fromJson,
  type JsonValue,
  type MessageShape,
  toJson,
} from "@bufbuild/protobuf";
import { isLoopback } from "../core/loopback.ts";
import { asRelightError, RelightError } from "../errors.ts";
import {
  BeginRequestSchema,
  GroupStatusSchema,
  ListGroupsResponseSchema,
} from "../protocol/gen/ep_pb.ts";
import type { Call } from "../trust/roles.ts";
import { type Access, openAccess } from "./access.ts";
import type { Groups } from "./ep-groups.ts";
import { EpService } from "./ep-service.ts";

const bodyBytesMax = 64 * 1_024;

export interface HttpAnswer {
  readonly status: number;
  readonly body: JsonValue;
}

export class EpHttp {
  readonly #service: EpService;
  readonly #access: Access;

  constructor(groups: Groups, access: Access = openAccess) {
    this.#service = new EpService(groups, access);
    this.#access = access;
  }

  /** Null when the path is none of these. */
  async answer(request: IncomingMessage): Promise<HttpAnswer | null> {
    const [path = ""] = (request.url ?? "").split("?");
    const [empty, version, ep, ...rest] = path.split("/");
    if (empty !== "" || version !== "v1" || ep !== "ep") return null;
    const [group, operations, operationId, ...more] = rest.map(decode);
    if (more.length > 0 || (operations !== undefined && operations !== "operations")) return null;
    const { method = "GET" } = request;
    if (group === undefined || group === "") return this.#list(request, method);
    if (operations === undefined)
      return this.#describe(request, { method, group, operationId: "" });
    if (operationId === undefined) return this.#begin(request, { method, group });
    if (method === "DELETE") return this.#abort(request, { group, operationId });
    return this.#describe(request, { method, group, operationId });
  }

  async #list(request: IncomingMessage, method: string): Promise<HttpAnswer> {
    mustBe(method, ["GET", "HEAD"]);
    this.#admit(request, "ep.read");
    const message = await this.#service.listGroups({ $typeName: "relight.v1.ListGroupsRequest" });
    return { status: 200, body: json(ListGroupsResponseSchema, message) };
  }

  async #describe(
    request: IncomingMessage,
    what: { readonly method: string; readonly group: string; readonly operationId: string },
  ): Promise<HttpAnswer> {
    mustBe(what.method, ["GET", "HEAD"]);
    this.#admit(request, "ep.read");
    const message = await this.#service.describe({
      $typeName: "relight.v1.DescribeRequest",
      group: what.group,
      operationId: what.operationId,
    });
    return { status: 200, body: json(GroupStatusSchema, message) };
  }

  /** 202: it is durable and goes on; ask for it by its id. */
  async #begin(
    request: IncomingMessage,
    { method, group }: { readonly method: string; readonly group: string },
  ): Promise<HttpAnswer> {
    mustBe(method, ["POST"]);
    this.#admit(request, "ep.operate");
    const body = await readJson(request);
    if (typeof body !== "object" || body === null || Array.isArray(body))
      throw new RelightError("request_invalid", "Cannot read the body: wanted an object");
    const message = readMessage({ ...body, group });
    return { status: 202, body: json(GroupStatusSchema, await this.#service.begin(message)) };
  }

  async #abort(
    request: IncomingMessage,
    what: { readonly group: string; readonly operationId: string },
  ): Promise<HttpAnswer> {
    this.#admit(request, "ep.operate");
    const message = await this.#service.abort({ $typeName: "relight.v1.AbortRequest", ...what });
    return { status: 202, body: json(GroupStatusSchema, message) };
  }

  #admit(request: IncomingMessage, call: Call): void {
    mustBeNear(request.socket.remoteAddress ?? "");
    const authorization = request.headers.authorization ?? null;
    this.#access.admit({ certificate: null, authorization }, call);
  }
}

/** This face speaks no TLS: beyond this machine a token would be read on the way, and nobody proves anything. */
function mustBeNear(address: string): void {
  if (isLoopback(address.replace(/^::ffff:/, ""))) return;
  throw new RelightError(
    "unauthenticated",
    "Cannot answer about expert groups in plaintext beyond loopback: want gRPC, or a call from this machine",
  );
}

function mustBe(method: string, allowed: readonly string[]): void {
  if (allowed.includes(method)) return;
  throw new RelightError("request_invalid", `Cannot answer ${method}: want ${allowed.join(", ")}`);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (cause) {
    throw new RelightError("request_invalid", "Cannot read the path", { cause });
  }
}

function readMessage(body: JsonValue): MessageShape<typeof BeginRequestSchema> {
  try {
    return fromJson(BeginRequestSchema, body);
  } catch (cause) {
    const why = asRelightError(cause).message;
    throw new RelightError("request_invalid", `Cannot read the body: ${why}`, { cause });
  }
}

async function readJson(request: IncomingMessage): Promise<JsonValue> {
  // A browser sends this type to another origin only after asking, and nobody here says yes.
  if (request.headers["content-type"]?.split(";")[0] !== "application/json") {
    throw new RelightError("request_invalid", "Cannot read the body: want application/json");
  }
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request) {
    if (!Buffer.isBuffer(chunk)) continue;
    bytes += chunk.byteLength;
    if (bytes > bodyBytesMax) {
      throw new RelightError("request_invalid", `Cannot read the body: over ${bodyBytesMax} bytes`);
    }
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8"));
  } catch (cause) {
    throw new RelightError("request_invalid", "Cannot read the body: it is not JSON", { cause });
  }
}

function json<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): JsonValue {
  return toJson(schema, message, { useProtoFieldName: true, alwaysEmitImplicit: true });
}
