// SPDX-License-Identifier: Apache-2.0
// How our messages travel over gRPC: method definitions whose bytes are protobuf-es's, and how a row
// of the error table becomes a gRPC status. What each side does with a call is in coordinator/ and
// agent/.

import type { DescMessage, DescMethod, MessageShape } from "@bufbuild/protobuf";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { type ChannelOptions, type MethodDefinition, status } from "@grpc/grpc-js";
import { type Code, codes } from "../errors.ts";
import { limits } from "./limits.ts";

/** The trailer that names the row of the error table. */
export const codeTrailer = "relight-code";

/** In front of the coordinator's answers: its wall clock in Unix milliseconds. */
export const clockHeader = "relight-unix-ms";

export const channelOptions: ChannelOptions = {
  "grpc.max_receive_message_length": limits.messageBytesMax,
  "grpc.max_send_message_length": limits.messageBytesMax,
};

type Method<I extends DescMessage, O extends DescMessage> = DescMethod & {
  readonly input: I;
  readonly output: O;
};

export function grpcMethod<I extends DescMessage, O extends DescMessage>(
  method: Method<I, O>,
): MethodDefinition<MessageShape<I>, MessageShape<O>> {
  const kind = method.methodKind;
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    originalName: method.localName,
    requestStream: kind === "client_streaming" || kind === "bidi_streaming",
    responseStream: kind === "server_streaming" || kind === "bidi_streaming",
    requestSerialize: (message) => asBuffer(toBinary(method.input, message)),
    requestDeserialize: (bytes) => fromBinary(method.input, bytes),
    responseSerialize: (message) => asBuffer(toBinary(method.output, message)),
    responseDeserialize: (bytes) => fromBinary(method.output, bytes),
  };
}

/** The gRPC status of an error code, from the HTTP status in its row. */
export function grpcStatus(code: Code): status {
  return statusOfHttp.get(codes[code].http) ?? status.INTERNAL;
}

/** The code that a trailer names, when it names one. */
export function codeNamed(text: unknown): Code | undefined {
  return typeof text === "string" && Object.hasOwn(codes, text) ? (text as Code) : undefined;
}

const statusOfHttp = new Map<number, status>([
  [400, status.INVALID_ARGUMENT],
  [401, status.UNAUTHENTICATED],
  [403, status.PERMISSION_DENIED],
  [404, status.NOT_FOUND],
  [409, status.FAILED_PRECONDITION],
  [499, status.CANCELLED],
  [503, status.UNAVAILABLE],
  [504, status.DEADLINE_EXCEEDED],
  [507, status.RESOURCE_EXHAUSTED],
]);

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
