// SPDX-License-Identifier: Apache-2.0
// The agent's and the command line's calls to relight.v1.ExpertGroups, and the stream of one member.

import {
  create,
  type DescMessage,
  type DescMethod,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { Client, type ClientDuplexStream, credentials, Metadata } from "@grpc/grpc-js";
import { isLoopback } from "../core/loopback.ts";
import type { JoinRequest } from "../elastic/session.ts";
import type { Status } from "../elastic/status.ts";
import type { View } from "../elastic/view.ts";
import { encode, readView } from "../elastic/wire.ts";
import { asRelightError, RelightError } from "../errors.ts";
import {
  type AbortRequestSchema,
  type BeginRequestSchema,
  ExpertGroups,
  type GroupStatus,
  type MemberEvent,
  type MemberWord,
  MemberWordSchema,
} from "../protocol/gen/ep_pb.ts";
import { channelOptions, grpcMethod } from "../protocol/grpc.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import { fromGrpc } from "./coordinator-errors.ts";
import { fleetChannelOptions, fleetCredentials } from "./fleet-channel.ts";

export interface EpClientOptions {
  /** host:port. */
  readonly address: string;
  readonly timeoutMs: number;
  /** Absent: plaintext, to loopback only. */
  readonly tls?: () => TlsMaterial;
}

export class EpClient implements Disposable {
  readonly #client: Client;
  readonly #options: EpClientOptions;

  /** @throws RelightError `config_invalid` for plaintext beyond loopback. */
  constructor(options: EpClientOptions) {
    const { address, tls } = options;
    this.#options = options;
    const host = address.slice(0, address.lastIndexOf(":"));
    if (tls === undefined && !isLoopback(host.replace(/^\[|\]$/g, ""))) {
      const message = `Cannot call "${address}" in plaintext: want loopback, or a certificate`;
      throw new RelightError("config_invalid", message);
    }
    this.#client =
      tls === undefined
        ? new Client(address, credentials.createInsecure(), { ...channelOptions, ...reconnect })
        : new Client(address, fleetCredentials(tls), {
            ...channelOptions,
            ...reconnect,
            ...fleetChannelOptions,
          });
  }

  begin(request: MessageInitShape<typeof BeginRequestSchema>): Promise<GroupStatus> {
    return this.#unary(ExpertGroups.method.begin, request);
  }

  abort(request: MessageInitShape<typeof AbortRequestSchema>): Promise<GroupStatus> {
    return this.#unary(ExpertGroups.method.abort, request);
  }

  describe(group: string, operationId = ""): Promise<GroupStatus> {
    return this.#unary(ExpertGroups.method.describe, { group, operationId });
  }

  async groups(): Promise<readonly string[]> {
    return (await this.#unary(ExpertGroups.method.listGroups, {})).groups;
  }

  member(
    request: JoinRequest,
    status: Status,
    on: { readonly view: (view: View) => void; readonly end: (error: RelightError) => void },
  ): MemberLine {
    const { path, requestSerialize, responseDeserialize } = grpcMethod(
      ExpertGroups.method.membership,
    );
    const call: ClientDuplexStream<MemberWord, MemberEvent> = this.#client.makeBidiStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
    );
    return new MemberLine(call, { request, status }, on);
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }

  #unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethod & { readonly input: I; readonly output: O },
    init: MessageInitShape<I>,
  ): Promise<MessageShape<O>> {
    const { path, requestSerialize, responseDeserialize } = grpcMethod(method);
    const { promise, resolve, reject } = Promise.withResolvers<MessageShape<O>>();
    this.#client.makeUnaryRequest(
      path,
      requestSerialize,
      responseDeserialize,
      create(method.input, init),
      new Metadata(),
      { deadline: Date.now() + this.#options.timeoutMs },
      (error, response) => {
        if (error === null && response !== undefined) resolve(response);
        else reject(fromGrpc(error, `${method.name} at ${this.#options.address}`));
      },
    );
    return promise;
  }
}

// A coordinator that was killed is back in well under a second; the group may wait for its word.
const reconnect = {
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.min_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 1_000,
};

/** One stream. It ends once, by an error or by `close`. */
export class MemberLine {
  readonly #call: ClientDuplexStream<MemberWord, MemberEvent>;
  #isEnded = false;

  constructor(
    call: ClientDuplexStream<MemberWord, MemberEvent>,
    { request, status }: { readonly request: JoinRequest; readonly status: Status },
    on: { readonly view: (view: View) => void; readonly end: (error: RelightError) => void },
  ) {
    this.#call = call;
    const end = (error: RelightError): void => {
      if (this.#isEnded) return;
      this.#isEnded = true;
      call.cancel();
      on.end(error);
    };
    call.on("data", ({ viewJson }: MemberEvent) => {
      if (this.#isEnded) return;
      try {
        on.view(readView(viewJson));
      } catch (error) {
        end(asRelightError(error));
      }
    });
    call.on("error", (error) => end(fromGrpc(error, "Membership")));
    const gone = "Cannot follow the group: the coordinator ended the stream";
    call.on("end", () => end(new RelightError("coordinator_unreachable", gone)));
    const value = { requestJson: encode(request), statusJson: encode(status) };
    call.write(create(MemberWordSchema, { kind: { case: "join", value } }));
  }

  tell(status: Status): void {
    if (this.#isEnded) return;
    this.#call.write(
      create(MemberWordSchema, { kind: { case: "statusJson", value: encode(status) } }),
    );
  }

  load(experts: readonly number[]): void {
    if (this.#isEnded) return;
    const value = { experts: [...experts] };
    this.#call.write(
      create(MemberWordSchema, {
        kind: { case: "load", value: { $typeName: "relight.v1.MemberLoad", ...value } },
      }),
    );
  }

  close(): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#call.end();
    this.#call.cancel();
  }
}
