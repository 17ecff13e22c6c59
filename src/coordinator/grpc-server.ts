// SPDX-License-Identifier: Apache-2.0
// The gRPC face: every service of the coordinator on one port.

import type { DescMessage, DescMethod, MessageShape } from "@bufbuild/protobuf";
import { Server, ServerCredentials, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { RelightError } from "../errors.ts";
import { P2pService as P2pDescription } from "../protocol/gen/p2p_pb.ts";
import { Coordinator } from "../protocol/gen/relight_pb.ts";
import { channelOptions, grpcMethod } from "../protocol/grpc.ts";
import type { P2pService } from "./p2p-service.ts";
import type { RelightService } from "./relight-service.ts";
import { type Handle, type RpcOptions, unary } from "./rpc.ts";

export interface Services {
  readonly relight: RelightService;
  readonly p2p: P2pService;
}

// A peer that vanished without closing its connection would keep its streams open for ever.
const keepalive = { "grpc.keepalive_time_ms": 10_000, "grpc.keepalive_timeout_ms": 5_000 };

export function grpcServer(services: Services, options: RpcOptions): Server {
  const server = new Server({ ...channelOptions, ...keepalive });
  const { relight, p2p } = services;
  const { session, watch } = Coordinator.method;
  server.addService(
    { session: grpcMethod(session), watch: grpcMethod(watch) },
    { session: relight.session.bind(relight), watch: relight.watch.bind(relight) },
  );
  const { publish, withdraw, find, reportBoot, listBoots } = Coordinator.method;
  addUnary(server, publish, relight.publish.bind(relight), options);
  addUnary(server, withdraw, relight.withdraw.bind(relight), options);
  addUnary(server, find, relight.find.bind(relight), options);
  addUnary(server, reportBoot, relight.reportBoot.bind(relight), options);
  addUnary(server, listBoots, relight.listBoots.bind(relight), options);
  const { publishMetadata, listSources, getMetadata, updateStatus } = P2pDescription.method;
  addUnary(server, publishMetadata, p2p.publishMetadata.bind(p2p), options);
  addUnary(server, listSources, p2p.listSources.bind(p2p), options);
  addUnary(server, getMetadata, p2p.getMetadata.bind(p2p), options);
  addUnary(server, updateStatus, p2p.updateStatus.bind(p2p), options);
  return server;
}

function addUnary<I extends DescMessage, O extends DescMessage>(
  server: Server,
  method: DescMethod & { readonly input: I; readonly output: O },
  handle: Handle<MessageShape<I>, MessageShape<O>>,
  options: RpcOptions,
): void {
  const name = method.localName;
  const implementation: UntypedServiceImplementation = { [name]: unary(name, handle, options) };
  server.addService({ [name]: grpcMethod(method) }, implementation);
}

/** @throws RelightError `port_in_use`. */
export function bindGrpc(server: Server, address: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (cause, port) => {
      if (cause === null) resolve(port);
      else
        reject(
          new RelightError("port_in_use", `Cannot listen on ${address}: ${cause.message}`, {
            cause,
          }),
        );
    });
  });
}

/** Lets calls in flight finish, then cuts what is left (sessions and watches never end by themselves). */
export function closeGrpc(server: Server, drainMs: number): Promise<void> {
  return new Promise((resolve) => {
    const cut = setTimeout(() => server.forceShutdown(), drainMs);
    server.tryShutdown(() => {
      clearTimeout(cut);
      resolve();
    });
  });
}
