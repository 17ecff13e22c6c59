// SPDX-License-Identifier: Apache-2.0
// Asks a coordinator for a certificate: the first time knowing nothing but what the join token says,
// later as the member that we are.

import { connect, createSecureContext, type TLSSocket } from "node:tls";
import { create } from "@bufbuild/protobuf";
import { ChannelCredentials, Client, Metadata } from "@grpc/grpc-js";
import { asRelightError, RelightError } from "../errors.ts";
import { Coordinator, type EnrolResponse } from "../protocol/gen/relight_pb.ts";
import { channelOptions, grpcMethod } from "../protocol/grpc.ts";
import { readCertificate, writeCertificatePem } from "../trust/certificate.ts";
import { checkServer, findAuthority } from "../trust/tls.ts";
import { coordinatorUri, memberNamed, type TlsMaterial } from "../trust/tls-material.ts";
import { fromGrpc } from "./coordinator-errors.ts";
import { fleetChannelOptions, fleetCredentials } from "./fleet-channel.ts";

interface Asked {
  /** host:port */
  readonly address: string;
  readonly timeoutMs: number;
  readonly envelope: Buffer;
}

/** Who joins has no policy yet. */
const nobody: ReadonlySet<string> = new Set();

/** @param authority SHA-256 of the fleet's authority, as the token names it. */
export async function askAsStranger(asked: Asked, authority: string): Promise<EnrolResponse> {
  const { certificate, trustDomain } = await meetCoordinator(asked, authority);
  const authorities = [certificate];
  const believed = { privateKeyPem: Buffer.alloc(0), chain: [], authorities, revokedKeys: nobody };
  const wanted = coordinatorUri(trustDomain);
  const context = createSecureContext({
    ca: writeCertificatePem(certificate.der),
    minVersion: "TLSv1.3",
  });
  const checkServerIdentity = checkServer(believed, { wanted, now: Date.now });
  const credentials = ChannelCredentials.createFromSecureContext(context, { checkServerIdentity });
  return await call(asked, credentials);
}

export async function askAsMember(asked: Asked, material: TlsMaterial): Promise<EnrolResponse> {
  return await call(
    asked,
    fleetCredentials(() => material),
  );
}

/** The authority out of what the coordinator shows. Nothing secret is said before it was found there. */
async function meetCoordinator({ address, timeoutMs }: Asked, fingerprint: string) {
  const { hostname: host, port } = new URL(`tls://${address}`);
  const socket = connect({
    host: host.replace(/^\[(.*)\]$/, "$1"),
    port: Number(port),
    ALPNProtocols: ["h2"],
    minVersion: "TLSv1.3",
    // Judged below, by the fingerprint that the token carries, and again by the call that follows.
    rejectUnauthorized: false,
  });
  socket.setTimeout(timeoutMs, () => socket.destroy(new Error("no answer in time")));
  try {
    await connected(socket);
    const shown = [];
    for (let at = socket.getPeerCertificate(true); shown.length < 4; at = at.issuerCertificate) {
      shown.push(readCertificate(at.raw));
      if (at.issuerCertificate === undefined || at.issuerCertificate === at) break;
    }
    const certificate = findAuthority(shown, fingerprint);
    const [leaf] = shown;
    if (leaf === undefined) throw new RelightError("certificate_invalid", "Cannot read the leaf");
    return { certificate, trustDomain: memberNamed(leaf).trustDomain };
  } catch (thrown) {
    if (thrown instanceof RelightError) throw thrown;
    throw new RelightError(
      "coordinator_unreachable",
      `Cannot meet the coordinator at ${address}: ${asRelightError(thrown).message}`,
      { cause: thrown },
    );
  } finally {
    socket.destroy();
  }
}

function connected(socket: TLSSocket): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once("secureConnect", resolve);
    socket.on("error", reject);
    socket.once("close", () => reject(new Error("it hung up")));
  });
}

function call(
  { address, timeoutMs, envelope }: Asked,
  credentials: ChannelCredentials,
): Promise<EnrolResponse> {
  const client = new Client(address, credentials, { ...channelOptions, ...fleetChannelOptions });
  const { path, requestSerialize, responseDeserialize } = grpcMethod(Coordinator.method.enrol);
  const { promise, resolve, reject } = Promise.withResolvers<EnrolResponse>();
  client.makeUnaryRequest(
    path,
    requestSerialize,
    responseDeserialize,
    create(Coordinator.method.enrol.input, { envelope }),
    new Metadata(),
    { deadline: Date.now() + timeoutMs },
    (error, response) => {
      if (error === null && response !== undefined) resolve(response);
      else reject(fromGrpc(error, `Enrol at ${address}`));
    },
  );
  return promise.finally(() => client.close());
}
