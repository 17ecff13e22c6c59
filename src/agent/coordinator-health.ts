// SPDX-License-Identifier: Apache-2.0
// One look at a coordinator, through the same doors as every call of an agent: whether it is reached and
// believed, whether its store answers, whether we may ask it anything, and whether our clocks agree.

import { create } from "@bufbuild/protobuf";
import { type Client, type ClientUnaryCall, Metadata } from "@grpc/grpc-js";
import { P2pService } from "../protocol/gen/p2p_pb.ts";
import { clockHeader, grpcMethod } from "../protocol/grpc.ts";
import { type ConnectOptions, openChannel } from "./coordinator-client.ts";
import { fromGrpc } from "./coordinator-errors.ts";

export interface CoordinatorHealth {
  /** False while its store does not answer. */
  readonly isServing: boolean;
  /** So far its clock is ahead of ours, in milliseconds; null when it does not tell. */
  readonly aheadMs: number | null;
}

interface Answer<Response> {
  readonly response: Response;
  readonly head: Metadata | null;
}

/** HealthCheckResponse with status SERVING: field 1, varint 1. */
const serving = Buffer.from([0x08, 0x01]);
const asIs = (bytes: Buffer): Buffer => bytes;

/** @throws RelightError `coordinator_unreachable`, `config_invalid`, or why we are refused. */
export async function askHealth(options: ConnectOptions): Promise<CoordinatorHealth> {
  const client = openChannel(options);
  try {
    const { response } = await ask<Buffer>(options, (deadline, tell) =>
      client.makeUnaryRequest(
        "/grpc.health.v1.Health/Check",
        asIs,
        asIs,
        Buffer.alloc(0),
        new Metadata(),
        { deadline },
        tell,
      ),
    );
    return {
      isServing: response.equals(serving),
      aheadMs: await askClock(client, options),
    };
  } finally {
    client.close();
  }
}

/** By a call that any member may make. */
async function askClock(client: Client, options: ConnectOptions): Promise<number | null> {
  const { listSources } = P2pService.method;
  const { path, requestSerialize, responseDeserialize } = grpcMethod(listSources);
  const began = performance.now();
  const { head } = await ask(options, (deadline, tell) =>
    client.makeUnaryRequest(
      path,
      requestSerialize,
      responseDeserialize,
      create(listSources.input, { limit: 1 }),
      new Metadata(),
      { deadline },
      tell,
    ),
  );
  const [text] = head?.get(clockHeader) ?? [];
  const itsMs = typeof text === "string" ? Number(text) : Number.NaN;
  const halfWayMs = (performance.now() - began) / 2;
  return Number.isSafeInteger(itsMs) ? itsMs - (Date.now() - halfWayMs) : null;
}

function ask<Response>(
  { address, timeoutMs }: ConnectOptions,
  start: (
    deadline: number,
    tell: (error: Error | null, response?: Response) => void,
  ) => ClientUnaryCall,
): Promise<Answer<Response>> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer<Response>>();
  let head: Metadata | null = null;
  const call = start(Date.now() + timeoutMs, (error, response) => {
    if (error === null && response !== undefined) resolve({ response, head });
    else reject(fromGrpc(error, `the call to ${address}`));
  });
  call.on("metadata", (metadata) => {
    head = metadata;
  });
  return promise;
}
