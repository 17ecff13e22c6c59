// SPDX-License-Identifier: Apache-2.0
// The agent's view of the coordinator: calls with plain types, every error translated once, here.
// The long-lived part, the session, is coordinator-session.ts.

import {
  create,
  type DescMessage,
  type DescMethod,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { Client, type ClientReadableStream, credentials, Metadata } from "@grpc/grpc-js";
import { isLoopback } from "../core/loopback.ts";
import { asRelightError, RelightError } from "../errors.ts";
import {
  type ListSourcesRequestSchema,
  P2pService,
  type SourceIdentity,
  type SourceIdentitySchema,
  type SourceInstanceRef,
  SourceStatus,
  type TensorDescriptor,
} from "../protocol/gen/p2p_pb.ts";
import {
  Coordinator,
  type FoundSource as FoundSourceMessage,
  type WatchEvent as WatchMessage,
} from "../protocol/gen/relight_pb.ts";
import { channelOptions, grpcMethod } from "../protocol/grpc.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import { cancelled, fromGrpc } from "./coordinator-errors.ts";
import { openSession, type Session, type SessionHello } from "./coordinator-session.ts";
import { fleetChannelOptions, fleetCredentials } from "./fleet-channel.ts";

export type { Session, SessionChange } from "./coordinator-session.ts";

/** The fields of a SourceIdentity as a plain object; what is left out is empty. */
export type Identity = MessageInitShape<typeof SourceIdentitySchema>;

export interface ArtifactInfo {
  readonly artifactId: string;
  readonly family: string;
  readonly totalBytes: number;
  readonly fileCount: number;
  readonly pieceCount: number;
  /** Artifacts whose entries this one shares, nearest first. */
  readonly baseArtifactIds: readonly string[];
}

export interface FoundSource {
  readonly sourceId: string;
  readonly workerId: string;
  readonly artifact: ArtifactInfo;
  /** Best first; what speaks TLS carries the SPIFFE id to expect there, `https://host:port#ID`. */
  readonly endpoints: readonly string[];
  readonly complete: boolean;
  /** Unix milliseconds. */
  readonly publishedAtMs: number;
  readonly readers: number;
}

export interface Publication {
  readonly sessionId: string;
  readonly identity: Identity;
  readonly workerId: string;
  readonly artifact: ArtifactInfo;
  readonly endpoints: readonly string[];
  readonly complete: boolean;
  readonly status: "initializing" | "ready";
  readonly workerRank?: number;
  readonly accelerator?: string;
  /** Counts up over everything that the session says; a later one heard makes an earlier one void. */
  readonly word?: number;
  /** Of live weights. */
  readonly tensors?: readonly TensorDescriptor[];
}

export interface BootReport {
  readonly bootId: string;
  readonly nodeId: string;
  readonly model: string;
  /** Unix milliseconds. */
  readonly startedAtMs: number;
  /** From start to healthy; null when the replica never became healthy. */
  readonly readyMs: number | null;
  /** UTF-8 JSON, at most 1 MiB. */
  readonly recordJson: Uint8Array;
}

export type WatchEvent =
  | { readonly type: "added" | "updated"; readonly source: FoundSource }
  | { readonly type: "removed"; readonly sourceId: string; readonly workerId: string }
  | { readonly type: "snapshot_done" };

export interface Withdrawal {
  readonly sessionId: string;
  readonly workerId: string;
  /** Absent: everything that the session published for the worker. */
  readonly sourceId?: string;
  /** As in a publication. */
  readonly word?: number;
}

export interface StatusUpdate {
  readonly sourceId: string;
  readonly workerId: string;
  /** As published; 0 when it was not said. */
  readonly workerRank?: number;
  readonly status: "initializing" | "ready" | "stale";
}

export interface CoordinatorClient extends AsyncDisposable {
  /** Per identity, in order, best source first. */
  find(
    identities: readonly Identity[],
    options: { readonly excludeWorkerId?: string; readonly limit?: number },
    signal: AbortSignal,
  ): Promise<readonly (readonly FoundSource[])[]>;
  openSession(hello: SessionHello, signal: AbortSignal): Promise<Session>;
  publish(publication: Publication, signal: AbortSignal): Promise<{ readonly sourceId: string }>;
  withdraw(what: Withdrawal, signal: AbortSignal): Promise<{ readonly withdrawn: number }>;
  updateStatus(update: StatusUpdate, signal: AbortSignal): Promise<void>;
  /** Runs until the signal aborts (then it resolves) or the stream fails (then it rejects). */
  watch(
    identities: readonly Identity[],
    onEvent: (event: WatchEvent) => void,
    signal: AbortSignal,
  ): Promise<void>;
  reportBoot(report: BootReport, signal: AbortSignal): Promise<void>;
  /** Newest first. */
  listBoots(limit: number, signal: AbortSignal): Promise<readonly BootReport[]>;
  /** ModelExpress's own listing: every kind of source, of any status unless filtered. */
  listSources(
    filter: MessageInitShape<typeof ListSourcesRequestSchema>,
    signal: AbortSignal,
  ): Promise<readonly SourceInstanceRef[]>;
  /** Under which identity a worker has published; null when it has not. */
  identityOf(
    worker: { readonly sourceId: string; readonly workerId: string },
    signal: AbortSignal,
  ): Promise<SourceIdentity | null>;
}

export interface ConnectOptions {
  /** host:port */
  readonly address: string;
  /** For each unary call and for the first Welcome of a session. */
  readonly timeoutMs: number;
  /** In [0, 1), for the jitter of reconnecting. */
  readonly random?: () => number;
  /** What to show at each connection; absent for a coordinator on loopback, in plaintext. */
  readonly tls?: () => TlsMaterial;
}

/**
 * Opens no socket before the first call. Every rejection is a RelightError.
 * @throws RelightError `config_invalid` for plaintext beyond loopback.
 */
export function connectCoordinator(options: ConnectOptions): CoordinatorClient {
  return new GrpcCoordinatorClient(options);
}

/** @throws RelightError `config_invalid` for plaintext beyond loopback. */
export function openChannel(options: ConnectOptions): Client {
  const host = options.address.replace(/:\d+$/, "");
  if (options.tls === undefined && !isLoopback(host)) {
    throw new RelightError(
      "config_invalid",
      `Cannot call the coordinator at "${options.address}" in plaintext: want loopback, or trust.join, or trust.certificate, trust.key and trust.authority`,
    );
  }
  const channel = { ...channelOptions, ...keepalive, ...backoff, ...ownConnections };
  const { address, tls } = options;
  return tls === undefined
    ? new Client(address, credentials.createInsecure(), channel)
    : new Client(address, fleetCredentials(tls), { ...channel, ...fleetChannelOptions });
}

// Pings notice a coordinator that vanished without closing its connections.
const keepalive = { "grpc.keepalive_time_ms": 5_000, "grpc.keepalive_timeout_ms": 3_000 };
// The channel itself must try again sooner than a session's grace ends.
const backoff = {
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1_000,
};
// Otherwise a new client inherits the back-off of an older one of the process and fails without trying.
const ownConnections = { "grpc.use_local_subchannel_pool": 1 };

class GrpcCoordinatorClient implements CoordinatorClient {
  readonly #client: Client;
  readonly #options: ConnectOptions;
  readonly #closing = new AbortController();

  constructor(options: ConnectOptions) {
    this.#options = options;
    this.#client = openChannel(options);
  }

  async find(
    identities: readonly Identity[],
    options: { readonly excludeWorkerId?: string; readonly limit?: number },
    signal: AbortSignal,
  ): Promise<readonly (readonly FoundSource[])[]> {
    const { excludeWorkerId = "", limit = 0 } = options;
    const request = { identities: [...identities], excludeWorkerId, limit };
    const { results } = await this.#unary(Coordinator.method.find, request, signal);
    if (results.length !== identities.length) {
      throw new RelightError(
        "coordinator_refused",
        `Cannot read the coordinator's answer: ${results.length} results for ${identities.length} identities`,
      );
    }
    return results.map(({ sources }) => sources.map(foundSource));
  }

  openSession(hello: SessionHello, signal: AbortSignal): Promise<Session> {
    const { timeoutMs, random = Math.random } = this.#options;
    const until = AbortSignal.any([signal, this.#closing.signal]);
    return openSession(this.#client, hello, {
      timeoutMs,
      random,
      signal: until,
      closing: this.#closing.signal,
    });
  }

  async publish(
    publication: Publication,
    signal: AbortSignal,
  ): Promise<{ readonly sourceId: string }> {
    const { artifact, status, workerRank = 0, accelerator = "" } = publication;
    const request = {
      ...publication,
      workerRank,
      accelerator,
      endpoints: [...publication.endpoints],
      tensors: [...(publication.tensors ?? [])],
      status: status === "ready" ? SourceStatus.READY : SourceStatus.INITIALIZING,
      artifact: {
        ...artifact,
        totalBytes: BigInt(artifact.totalBytes),
        baseArtifactIds: [...artifact.baseArtifactIds],
      },
    };
    const { sourceId } = await this.#unary(Coordinator.method.publish, request, signal);
    return { sourceId };
  }

  async withdraw(what: Withdrawal, signal: AbortSignal): Promise<{ readonly withdrawn: number }> {
    const { withdrawn } = await this.#unary(Coordinator.method.withdraw, what, signal);
    return { withdrawn };
  }

  async updateStatus(update: StatusUpdate, signal: AbortSignal): Promise<void> {
    const { sourceId: mxSourceId, workerId, workerRank = 0 } = update;
    const status = wireStatus[update.status];
    const request = { mxSourceId, workerId, workerRank, status };
    const { success, message } = await this.#unary(P2pService.method.updateStatus, request, signal);
    if (!success) throw new RelightError("coordinator_refused", message);
  }

  watch(
    identities: readonly Identity[],
    onEvent: (event: WatchEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const until = AbortSignal.any([signal, this.#closing.signal]);
    if (until.aborted) return Promise.resolve();
    const method = grpcMethod(Coordinator.method.watch);
    const { path, requestSerialize, responseDeserialize } = method;
    const request = create(Coordinator.method.watch.input, { identities: [...identities] });
    const stream: ClientReadableStream<WatchMessage> = this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
    );
    return untilEnd(stream, onEvent, until);
  }

  async reportBoot(report: BootReport, signal: AbortSignal): Promise<void> {
    const { readyMs, startedAtMs, ...rest } = report;
    const message = {
      ...rest,
      startedAtMs: BigInt(startedAtMs),
      ...(readyMs === null ? {} : { readyMs: BigInt(Math.round(readyMs)) }),
    };
    await this.#unary(Coordinator.method.reportBoot, { report: message }, signal);
  }

  async listBoots(limit: number, signal: AbortSignal): Promise<readonly BootReport[]> {
    const { boots } = await this.#unary(Coordinator.method.listBoots, { limit }, signal);
    return boots.map(({ bootId, nodeId, model, startedAtMs, readyMs, recordJson }) => ({
      bootId,
      nodeId,
      model,
      recordJson,
      startedAtMs: Number(startedAtMs),
      readyMs: readyMs === undefined ? null : Number(readyMs),
    }));
  }

  async listSources(
    filter: MessageInitShape<typeof ListSourcesRequestSchema>,
    signal: AbortSignal,
  ): Promise<readonly SourceInstanceRef[]> {
    const { instances } = await this.#unary(P2pService.method.listSources, filter, signal);
    return instances;
  }

  async identityOf(
    { sourceId, workerId }: { readonly sourceId: string; readonly workerId: string },
    signal: AbortSignal,
  ): Promise<SourceIdentity | null> {
    const request = { mxSourceId: sourceId, workerId };
    const { identity } = await this.#unary(P2pService.method.getMetadata, request, signal);
    return identity ?? null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(cancelled("Cannot finish: the client was closed"));
    this.#client.close();
  }

  #unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethod & { readonly input: I; readonly output: O },
    init: MessageInitShape<I>,
    signal: AbortSignal,
  ): Promise<MessageShape<O>> {
    const { path, requestSerialize, responseDeserialize } = grpcMethod(method);
    const { promise, resolve, reject } = Promise.withResolvers<MessageShape<O>>();
    for (const ended of [signal, this.#closing.signal]) {
      if (ended.aborted) return Promise.reject(abortReason(ended));
    }
    const call = this.#client.makeUnaryRequest(
      path,
      requestSerialize,
      responseDeserialize,
      create(method.input, init),
      new Metadata(),
      { deadline: Date.now() + this.#options.timeoutMs },
      (error, response) => {
        if (error === null && response !== undefined) resolve(response);
        else if (signal.aborted) reject(abortReason(signal));
        else reject(fromGrpc(error, `${method.name} at ${this.#options.address}`));
      },
    );
    const abort = (): void => call.cancel();
    signal.addEventListener("abort", abort, { once: true });
    return promise.finally(() => signal.removeEventListener("abort", abort));
  }
}

const wireStatus = {
  initializing: SourceStatus.INITIALIZING,
  ready: SourceStatus.READY,
  stale: SourceStatus.STALE,
} as const;

function abortReason(signal: AbortSignal): RelightError {
  const { reason } = signal;
  return reason instanceof RelightError
    ? reason
    : cancelled("Cannot finish the call: cancelled", reason);
}

function untilEnd(
  stream: ClientReadableStream<WatchMessage>,
  onEvent: (event: WatchEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const abort = (): void => stream.cancel();
  signal.addEventListener("abort", abort, { once: true });
  stream.on("data", (message: WatchMessage) => {
    if (signal.aborted) return;
    try {
      const event = watchEvent(message);
      if (event !== undefined) onEvent(event);
    } catch (error) {
      reject(asRelightError(error));
      stream.cancel();
    }
  });
  stream.on("error", (error) => (signal.aborted ? resolve() : reject(fromGrpc(error, "Watch"))));
  stream.on("end", () => {
    if (signal.aborted) resolve();
    else
      reject(
        new RelightError(
          "coordinator_unreachable",
          "Cannot watch on: the coordinator ended the stream",
        ),
      );
  });
  return promise.finally(() => signal.removeEventListener("abort", abort));
}

/** Undefined for a kind that a later version may add. */
function watchEvent({ kind }: WatchMessage): WatchEvent | undefined {
  switch (kind.case) {
    case "added":
    case "updated":
      return { type: kind.case, source: foundSource(kind.value) };
    case "removed":
      return { type: "removed", sourceId: kind.value.sourceId, workerId: kind.value.workerId };
    case "snapshotDone":
      return { type: "snapshot_done" };
    default:
      return undefined;
  }
}

function foundSource(message: FoundSourceMessage): FoundSource {
  const { sourceId, workerId, complete, readers, publishedAtMs, artifact } = message;
  return {
    sourceId,
    workerId,
    endpoints: message.endpoints.map((endpoint) => endpointWith(endpoint, message.identity)),
    complete,
    readers,
    publishedAtMs: Number(publishedAtMs),
    artifact: {
      artifactId: artifact?.artifactId ?? "",
      family: artifact?.family ?? "",
      totalBytes: Number(artifact?.totalBytes ?? 0n),
      fileCount: artifact?.fileCount ?? 0,
      pieceCount: artifact?.pieceCount ?? 0,
      baseArtifactIds: artifact?.baseArtifactIds ?? [],
    },
  };
}

/** Without an id nobody can be expected there, and the byte path refuses it. */
function endpointWith(endpoint: string, identity: string): string {
  return endpoint.startsWith("https://") && identity !== "" ? `${endpoint}#${identity}` : endpoint;
}
