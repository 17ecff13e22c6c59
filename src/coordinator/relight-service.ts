// SPDX-License-Identifier: Apache-2.0
// relight.v1.Coordinator: messages in, registry calls, messages out. What is decided is decided in
// registry.ts; what is well-formed in validate.ts.

import { create, toBinary } from "@bufbuild/protobuf";
import type { ServerDuplexStream, ServerWritableStream } from "@grpc/grpc-js";
import { asRelightError, RelightError } from "../errors.ts";
import {
  ArtifactSourceMetadataSchema,
  MxSourceType,
  PublishMetadataRequestSchema,
  TensorSourceMetadataSchema,
  SourceStatus as WireStatus,
  WorkerMetadataSchema,
} from "../protocol/gen/p2p_pb.ts";
import {
  ArtifactSchema,
  BootReportSchema,
  type FindRequest,
  type FindResponse,
  FindResponseSchema,
  type FoundSource,
  FoundSourceSchema,
  FoundSourcesSchema,
  type Hello,
  type ListBootsRequest,
  type ListBootsResponse,
  ListBootsResponseSchema,
  type PublishRequest,
  type PublishResponse,
  PublishResponseSchema,
  type ReportBootRequest,
  type ReportBootResponse,
  ReportBootResponseSchema,
  type SessionEvent,
  SessionEventSchema,
  type SessionRequest,
  type WatchEvent,
  WatchEventSchema,
  type WatchRequest,
  type WithdrawRequest,
  type WithdrawResponse,
  WithdrawResponseSchema,
} from "../protocol/gen/relight_pb.ts";
import { limits } from "../protocol/limits.ts";
import { sourceIdOf } from "../protocol/source-id.ts";
import type { Boot, Offer, SourceHead } from "../store/store.ts";
import { type Access, type Admitted, mustBeAllowed, openAccess } from "./access.ts";
import { storeBudget } from "./budget.ts";
import { headOf } from "./p2p-messages.ts";
import { PolicyFeed } from "./policy-feed.ts";
import type { Registry } from "./registry.ts";
import { asStatus, presentedBy } from "./rpc.ts";
import {
  checkBoot,
  checkEndpoint,
  checkIdentities,
  checkIdentity,
  checkLimit,
  checkName,
  checkOffer,
  checkSourceId,
  checkTensors,
  checkText,
} from "./validate.ts";
import type { SourceEvent } from "./watchers.ts";

/** A watcher this many events behind is ended; it watches again and gets a new snapshot. */
const watchBacklogMax = 10_000;

export class RelightService {
  readonly #registry: Registry;
  readonly #budgetMs: number;
  readonly #onBoot: (boot: Boot) => void;
  readonly #access: Access;
  readonly #policies: PolicyFeed;

  constructor(
    registry: Registry,
    options: {
      budgetMs: number;
      onBoot?: (boot: Boot) => void;
      access?: Access;
      policies?: PolicyFeed;
    },
  ) {
    this.#registry = registry;
    this.#access = options.access ?? openAccess;
    this.#policies = options.policies ?? new PolicyFeed();
    this.#budgetMs = options.budgetMs;
    this.#onBoot = options.onBoot ?? (() => {});
  }

  async publish(
    request: PublishRequest,
    signal: AbortSignal,
    by: Admitted | null = null,
  ): Promise<PublishResponse> {
    const identity = checkIdentity("identity", request.identity);
    const offer = checkOffer(request);
    const status = publishedStatus(request.status);
    const workerId = checkName("worker_id", request.workerId);
    const worker = create(WorkerMetadataSchema, {
      workerRank: request.workerRank,
      accelerator: checkText("accelerator", request.accelerator, limits.nameLengthMax),
      status: request.status,
      sourcePayload: payloadOf(request, offer),
    });
    const sessionId = checkName("session_id", request.sessionId);
    const publisher = by?.uri ?? null;
    const head = headOf({ identity, worker, workerId, status, sessionId, offer, publisher });
    const body = create(PublishMetadataRequestSchema, { identity, worker, workerId });
    const { word } = request;
    const bytes = toBinary(PublishMetadataRequestSchema, body);
    await this.#registry.publish(head, bytes, signal, { by, word });
    return create(PublishResponseSchema, { sourceId: head.sourceId });
  }

  async withdraw(
    request: WithdrawRequest,
    signal: AbortSignal,
    by: Admitted | null = null,
  ): Promise<WithdrawResponse> {
    const sourceId = request.sourceId === "" ? null : checkSourceId("source_id", request.sourceId);
    const workerId = checkName("worker_id", request.workerId);
    const sessionId = checkName("session_id", request.sessionId);
    const what = { sessionId, workerId, sourceId, word: request.word };
    const withdrawn = await this.#registry.withdraw(what, signal, by);
    return create(WithdrawResponseSchema, { withdrawn });
  }

  async find(request: FindRequest, signal: AbortSignal): Promise<FindResponse> {
    const identities = checkIdentities(request.identities);
    const { findLimitDefault, findLimitMax } = limits;
    const bounds = { fallback: findLimitDefault, max: findLimitMax };
    const limit = checkLimit("limit", request.limit, bounds);
    const excludeWorkerId = checkText(
      "exclude_worker_id",
      request.excludeWorkerId,
      limits.nameLengthMax,
    );
    const results = identities.map(async (identity) => {
      const sourceId = sourceIdOf(identity);
      const found = await this.#registry.find(sourceId, { excludeWorkerId, limit }, signal);
      const sources = found.map(({ head, readers }) => foundMessage(head, readers));
      return create(FoundSourcesSchema, { sourceId, sources });
    });
    return create(FindResponseSchema, { results: await Promise.all(results) });
  }

  async reportBoot(
    request: ReportBootRequest,
    signal: AbortSignal,
    by: Admitted | null = null,
  ): Promise<ReportBootResponse> {
    const boot = checkBoot(request.report);
    if (by !== null) mustBeAllowed(by.caller, "boot.report", boot.nodeId);
    await this.#registry.putBoot(boot, signal);
    this.#onBoot(boot);
    return create(ReportBootResponseSchema);
  }

  async listBoots(request: ListBootsRequest, signal: AbortSignal): Promise<ListBootsResponse> {
    const { bootsLimitDefault, bootsLimitMax } = limits;
    const bounds = { fallback: bootsLimitDefault, max: bootsLimitMax };
    const boots = await this.#registry.boots(checkLimit("limit", request.limit, bounds), signal);
    return create(ListBootsResponseSchema, { boots: withinBytes(boots).map(bootMessage) });
  }

  /** One agent's stream. The shell of registry.hello, heartbeat and goodbye. */
  session(call: ServerDuplexStream<SessionRequest, SessionEvent>): void {
    let sessionId: string | null = null;
    const fail = (error: unknown): void => {
      call.emit("error", asStatus(asRelightError(error)));
    };
    const hear = (request: SessionRequest): void => {
      const { kind } = request;
      // Each word anew: a stream lives longer than a certificate.
      const by = this.#access.admit(presentedBy(call), "session.open");
      if (kind.case === "hello" && sessionId === null)
        sessionId = this.#welcome(call, kind.value, by);
      else if (kind.case === "heartbeat" && sessionId !== null) {
        if (!this.#registry.heartbeat(sessionId, kind.value.readers)) throw ended(sessionId);
      } else if (kind.case === "goodbye" && sessionId !== null) this.#goodbye(call, sessionId);
      else
        throw new RelightError(
          "request_invalid",
          "Cannot read the session: wanted Hello, then the rest",
        );
    };
    // Also before the first word: a stranger does not get to hold a stream.
    try {
      this.#access.admit(presentedBy(call), "session.open");
    } catch (error) {
      fail(error);
      return;
    }
    call.on("data", (request: SessionRequest) => {
      try {
        hear(request);
      } catch (error) {
        fail(error);
      }
    });
    // A client that ends its half without Goodbye is a lost connection: the deadline decides.
    call.on("end", () => call.end());
    call.on("error", ignore);
  }

  #welcome(
    call: ServerDuplexStream<SessionRequest, SessionEvent>,
    hello: Hello,
    by: Admitted | null,
  ): string {
    const nodeId = checkName("node_id", hello.nodeId);
    const agentEndpoint =
      hello.agentEndpoint === "" ? "" : checkEndpoint("agent_endpoint", hello.agentEndpoint);
    const { heartbeatMs, sessionGraceMs: graceMs } = this.#registry.limits;
    const agent = { nodeId, agentEndpoint, sessionId: hello.sessionId ?? null };
    const { id, resumed } = this.#registry.hello(agent, by);
    const value = { sessionId: id, heartbeatMs, graceMs, resumed };
    call.write(create(SessionEventSchema, { kind: { case: "welcome", value } }));
    this.#tellPolicies(call);
    return id;
  }

  #tellPolicies(call: ServerDuplexStream<SessionRequest, SessionEvent>): void {
    const leave = this.#policies.follow((envelope) => {
      call.write(create(SessionEventSchema, { kind: { case: "policy", value: envelope } }));
    });
    for (const end of ["cancelled", "end", "error", "close"] as const) call.on(end, leave);
  }

  #goodbye(call: ServerDuplexStream<SessionRequest, SessionEvent>, sessionId: string): void {
    const budget = storeBudget(this.#budgetMs);
    this.#registry
      .goodbye(sessionId, budget.signal)
      .finally(() => budget[Symbol.dispose]())
      .then(
        () => call.end(),
        (error: unknown) => call.emit("error", asStatus(asRelightError(error))),
      );
  }

  /** Snapshot, marker, then changes in order. */
  watch(call: ServerWritableStream<WatchRequest, WatchEvent>): void {
    const budget = storeBudget(this.#budgetMs);
    const backlog: SourceEvent[] = [];
    let state: "snapshot" | "live" | "ended" = "snapshot";
    let unwatch = ignore;
    const stop = (): void => {
      state = "ended";
      unwatch();
      budget[Symbol.dispose]();
      budget.abort(new RelightError("cancelled", "The watch has ended"));
    };
    const fail = (error: unknown): void => {
      if (state === "ended") return;
      stop();
      call.emit("error", asStatus(asRelightError(error)));
    };
    const tell = (event: SourceEvent): void => {
      if (backlog.length + call.writableLength >= watchBacklogMax) fail(tooSlow());
      else if (state === "live") call.write(this.#watchMessage(event));
      else backlog.push(event);
    };
    call.on("cancelled", stop);
    call.on("error", ignore);
    const run = async (): Promise<void> => {
      this.#access.admit(presentedBy(call), "source.watch");
      const sourceIds = checkIdentities(call.request.identities).map((identity) =>
        sourceIdOf(identity),
      );
      unwatch = this.#registry.watch(sourceIds, tell);
      for (const sourceId of new Set(sourceIds)) {
        for await (const heads of this.#registry.offers(sourceId, budget.signal)) {
          for (const head of heads) call.write(this.#watchMessage({ type: "added", head }));
        }
      }
      if (state === "ended") return;
      budget[Symbol.dispose]();
      call.write(create(WatchEventSchema, { kind: { case: "snapshotDone", value: {} } }));
      state = "live";
      for (const event of backlog.splice(0)) call.write(this.#watchMessage(event));
    };
    run().catch(fail);
  }

  #watchMessage(event: SourceEvent): WatchEvent {
    if (event.type === "removed") {
      return create(WatchEventSchema, { kind: { case: "removed", value: event.key } });
    }
    const value = foundMessage(event.head, this.#registry.readersOf(event.head));
    return create(WatchEventSchema, { kind: { case: event.type, value } });
  }
}

/** What ModelExpress's GetMetadata shows of it. */
function payloadOf({ identity, tensors }: PublishRequest, offer: Offer) {
  if (identity?.mxSourceType === MxSourceType.WEIGHTS) {
    const value = create(TensorSourceMetadataSchema, {
      tensors: [...checkTensors("tensors", tensors)],
    });
    return { case: "tensorSource", value } as const;
  }
  const value = create(ArtifactSourceMetadataSchema, {
    artifactId: offer.artifactId,
    totalSize: BigInt(offer.totalBytes),
    fileCount: offer.fileCount,
    chunkCount: offer.pieceCount,
  });
  return { case: "artifactSource", value } as const;
}

function publishedStatus(status: WireStatus): "initializing" | "ready" {
  if (status === WireStatus.READY) return "ready";
  if (status === WireStatus.INITIALIZING) return "initializing";
  throw new RelightError(
    "request_invalid",
    `Cannot publish with status ${status}: wanted INITIALIZING or READY`,
  );
}

function foundMessage(head: SourceHead, readers: number): FoundSource {
  const { sourceId, workerId, publishedAtMs, offer, publisher } = head;
  return create(FoundSourceSchema, {
    sourceId,
    workerId,
    readers,
    identity: publisher ?? "",
    publishedAtMs: BigInt(publishedAtMs),
    complete: offer?.complete ?? false,
    endpoints: [...(offer?.endpoints ?? [])],
    artifact: create(ArtifactSchema, {
      artifactId: offer?.artifactId ?? "",
      family: offer?.family ?? "",
      totalBytes: BigInt(offer?.totalBytes ?? 0),
      fileCount: offer?.fileCount ?? 0,
      pieceCount: offer?.pieceCount ?? 0,
      baseArtifactIds: [...(offer?.baseArtifactIds ?? [])],
    }),
  });
}

function bootMessage(boot: Boot): ReturnType<typeof create<typeof BootReportSchema>> {
  const { bootId, nodeId, model, startedAtMs, readyMs, record } = boot;
  return create(BootReportSchema, {
    bootId,
    nodeId,
    model,
    startedAtMs: BigInt(startedAtMs),
    ...(readyMs === null ? {} : { readyMs: BigInt(readyMs) }),
    recordJson: record,
  });
}

/** The newest that fit one answer. */
function withinBytes(boots: readonly Boot[]): readonly Boot[] {
  let bytes = 0;
  const firstBeyond = boots.findIndex((boot) => {
    bytes += boot.record.byteLength;
    return bytes > limits.bootsAnswerBytesMax;
  });
  return firstBeyond === -1 ? boots : boots.slice(0, firstBeyond);
}

function ended(sessionId: string): RelightError {
  return new RelightError(
    "conflict",
    `Cannot hear session "${sessionId}": it has ended, say hello again`,
  );
}

function tooSlow(): RelightError {
  return new RelightError(
    "store_unavailable",
    `Cannot keep the watch: ${watchBacklogMax} events behind`,
  );
}

function ignore(): void {}
