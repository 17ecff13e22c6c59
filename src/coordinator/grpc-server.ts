// SPDX-License-Identifier: Apache-2.0
// The gRPC face: every service of the coordinator on one port.

import type { DescMessage, DescMethod, MessageShape } from "@bufbuild/protobuf";
import { Server, ServerCredentials, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { isLoopback } from "../core/loopback.ts";
import { RelightError } from "../errors.ts";
import { ExpertGroups } from "../protocol/gen/ep_pb.ts";
import { P2pService as P2pDescription } from "../protocol/gen/p2p_pb.ts";
import { Coordinator } from "../protocol/gen/relight_pb.ts";
import { channelOptions, grpcMethod } from "../protocol/grpc.ts";
import type { Call } from "../trust/roles.ts";
import type { EnrolmentService } from "./enrolment.ts";
import type { EpService } from "./ep-service.ts";
import type { P2pService } from "./p2p-service.ts";
import type { RelightService } from "./relight-service.ts";
import { type Handle, type RpcOptions, unary } from "./rpc.ts";

export interface Services {
  readonly relight: RelightService;
  readonly p2p: P2pService;
  readonly ep: EpService;
  /** Null where no authority of the fleet's own lies here. */
  readonly enrolment: EnrolmentService | null;
}

// A peer that vanished without closing its connection would keep its streams open for ever.
const keepalive = { "grpc.keepalive_time_ms": 10_000, "grpc.keepalive_timeout_ms": 5_000 };
// Far above what one agent has open at once, and little memory each.
const streams = { "grpc.max_concurrent_streams": 1_000 };

/** @param idleMsMax after which a connection without a call is ended; null: never */
export function grpcServer(
  services: Services,
  { idleMsMax, ...options }: RpcOptions & { readonly idleMsMax: number | null },
): Server {
  const server = new Server({
    ...channelOptions,
    ...keepalive,
    ...streams,
    // A stranger that has agreed on TLS and asks for nothing more keeps no place.
    ...(idleMsMax === null ? {} : { "grpc.max_connection_idle_ms": idleMsMax }),
  });
  const { relight, p2p, ep, enrolment } = services;
  const { session, watch } = Coordinator.method;
  server.addService(
    { session: grpcMethod(session), watch: grpcMethod(watch) },
    { session: relight.session.bind(relight), watch: relight.watch.bind(relight) },
  );
  const { publish, withdraw, find, reportBoot, listBoots } = Coordinator.method;
  const add = adder(server, options);
  if (enrolment !== null)
    add(Coordinator.method.enrol, "certificate.renew", enrolment.enrol.bind(enrolment), true);
  add(publish, "source.publish", relight.publish.bind(relight));
  add(withdraw, "source.update", relight.withdraw.bind(relight));
  add(find, "source.get", relight.find.bind(relight));
  add(reportBoot, "boot.report", relight.reportBoot.bind(relight));
  add(listBoots, "boot.read", relight.listBoots.bind(relight));
  const { publishMetadata, listSources, getMetadata, updateStatus } = P2pDescription.method;
  add(publishMetadata, "source.publish", p2p.publishMetadata.bind(p2p));
  add(listSources, "source.list", p2p.listSources.bind(p2p));
  add(getMetadata, "source.get", p2p.getMetadata.bind(p2p));
  add(updateStatus, "source.update", p2p.updateStatus.bind(p2p));
  const { membership, begin, abort, describe, listGroups } = ExpertGroups.method;
  server.addService({ membership: grpcMethod(membership) }, { membership: ep.membership.bind(ep) });
  add(begin, "ep.operate", ep.begin.bind(ep));
  add(abort, "ep.operate", ep.abort.bind(ep));
  add(describe, "ep.read", ep.describe.bind(ep));
  add(listGroups, "ep.read", ep.listGroups.bind(ep));
  return server;
}

function adder(server: Server, options: RpcOptions) {
  return <I extends DescMessage, O extends DescMessage>(
    method: DescMethod & { readonly input: I; readonly output: O },
    call: Call,
    handle: Handle<MessageShape<I>, MessageShape<O>>,
    isOpen = false,
  ): void => {
    const name = method.localName;
    const implementation: UntypedServiceImplementation = {
      [name]: unary({ name, call, isOpen }, handle, options),
    };
    server.addService({ [name]: grpcMethod(method) }, implementation);
  };
}

/** Plaintext. @throws RelightError `port_in_use`; `config_invalid` for an address beyond loopback. */
export function bindGrpc(
  server: Server,
  { host, port }: { readonly host: string; readonly port: number },
): Promise<number> {
  if (!isLoopback(host)) {
    throw new RelightError(
      "config_invalid",
      `Cannot listen on "${host}" in plaintext: want loopback, or an authority from \`relight trust init\`, or trust.certificate, trust.key and trust.authority`,
    );
  }
  const address = `${host.includes(":") ? `[${host}]` : host}:${port}`;
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (cause, bound) => {
      if (cause === null) resolve(bound);
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
