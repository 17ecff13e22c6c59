// SPDX-License-Identifier: Apache-2.0
// model_express.p2p.P2pService as ModelExpress clients know it: what is wrong with a request comes back
// inside the response; only a store that does not answer is a gRPC status, because an empty list or
// `found: false` would be a statement.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { asRelightError, RelightError } from "../errors.ts";
import {
  type GetMetadataRequest,
  type GetMetadataResponse,
  GetMetadataResponseSchema,
  type ListSourcesRequest,
  type ListSourcesResponse,
  ListSourcesResponseSchema,
  type PublishMetadataRequest,
  PublishMetadataRequestSchema,
  type PublishMetadataResponse,
  PublishMetadataResponseSchema,
  type UpdateStatusRequest,
  type UpdateStatusResponse,
  UpdateStatusResponseSchema,
  SourceStatus as WireStatus,
  type WorkerMetadata,
} from "../protocol/gen/p2p_pb.ts";
import { limits } from "../protocol/limits.ts";
import { isSourceId, sourceIdOf } from "../protocol/source-id.ts";
import type { SourceStatus } from "../store/store.ts";
import type { Admitted } from "./access.ts";
import { headOf, refOf, statusOf, wireStatusOf } from "./p2p-messages.ts";
import type { Registry } from "./registry.ts";
import type { Listed } from "./standing.ts";
import { checkIdentity, checkName, checkSourceId } from "./validate.ts";

export class P2pService {
  readonly #registry: Registry;

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  async publishMetadata(
    request: PublishMetadataRequest,
    signal: AbortSignal,
    by: Admitted | null = null,
  ): Promise<PublishMetadataResponse> {
    try {
      const { sourceId, workerId } = await this.#publish(request, signal, by);
      return create(PublishMetadataResponseSchema, {
        success: true,
        message: `Published worker "${workerId}" under "${sourceId}"`,
        mxSourceId: sourceId,
        workerId,
      });
    } catch (error) {
      return create(PublishMetadataResponseSchema, { success: false, message: refusalOf(error) });
    }
  }

  async #publish(
    request: PublishMetadataRequest,
    signal: AbortSignal,
    by: Admitted | null,
  ): Promise<{ sourceId: string; workerId: string }> {
    const identity = checkIdentity("identity", request.identity);
    const workerId = checkName("worker_id", request.workerId);
    const { worker } = request;
    if (worker === undefined)
      throw new RelightError("request_invalid", "Cannot publish: worker is absent");
    const status = publishedStatus(worker.status);
    const publisher = by?.uri ?? null;
    const none = { sessionId: null, offer: null };
    const head = headOf({ identity, worker, workerId, status, publisher, ...none });
    await this.#registry.publish(head, toBinary(PublishMetadataRequestSchema, request), signal, {
      by,
    });
    return { sourceId: head.sourceId, workerId };
  }

  async listSources(
    request: ListSourcesRequest,
    signal: AbortSignal,
  ): Promise<ListSourcesResponse> {
    const { identity } = request;
    const isOne = identity !== undefined && identity.modelName !== "";
    const listed = isOne
      ? await this.#listOne(sourceIdOf(identity), request, signal)
      : await this.#listAll(request, signal);
    listed.sort((a, b) => b.heardMs - a.heardMs);
    const limit = request.limit ?? 0;
    const instances = (limit > 0 ? listed.slice(0, limit) : listed).map(refOf);
    return create(ListSourcesResponseSchema, { instances });
  }

  async #listOne(
    sourceId: string,
    request: ListSourcesRequest,
    signal: AbortSignal,
  ): Promise<Listed[]> {
    const accepts = this.#filter(request);
    return (await this.#registry.listSource(sourceId, signal)).filter(accepts);
  }

  async #listAll(request: ListSourcesRequest, signal: AbortSignal): Promise<Listed[]> {
    const accepts = this.#filter(request);
    const listed: Listed[] = [];
    for await (const batch of this.#registry.listAll(signal)) listed.push(...batch.filter(accepts));
    return listed;
  }

  #filter(request: ListSourcesRequest): (listed: Listed) => boolean {
    const { statusFilter, modelNameFilter, workerRankFilter, minTrainingStep, minUpdatedAt } =
      request;
    const status = statusFilter === undefined ? undefined : wantedStatus(statusFilter);
    return (listed) => {
      const { head, heardMs } = listed;
      return (
        (status === undefined || head.status === status) &&
        (status !== "ready" || this.#registry.isFresh(listed)) &&
        (modelNameFilter === undefined || head.modelName === modelNameFilter) &&
        (workerRankFilter === undefined || head.workerRank === workerRankFilter) &&
        (minTrainingStep === undefined || (head.trainingStep ?? -1n) >= minTrainingStep) &&
        (minUpdatedAt === undefined || BigInt(heardMs) >= minUpdatedAt)
      );
    };
  }

  async getMetadata(
    request: GetMetadataRequest,
    signal: AbortSignal,
  ): Promise<GetMetadataResponse> {
    const { mxSourceId, workerId } = request;
    if (mxSourceId === "" || workerId === "") return create(GetMetadataResponseSchema);
    if (!isPossible(mxSourceId, workerId)) return create(GetMetadataResponseSchema, { mxSourceId });
    const stored = await this.#registry.read({ sourceId: mxSourceId, workerId }, signal);
    if (stored === undefined) return create(GetMetadataResponseSchema, { mxSourceId, workerId });
    const published = publishedIn(stored.body);
    const { identity, worker } = published;
    return create(GetMetadataResponseSchema, {
      found: true,
      mxSourceId,
      workerId,
      identity,
      worker: {
        ...worker,
        status: wireStatusOf(stored.head.status),
        updatedAt: BigInt(stored.heardMs),
      },
    });
  }

  async updateStatus(
    request: UpdateStatusRequest,
    signal: AbortSignal,
    by: Admitted | null = null,
  ): Promise<UpdateStatusResponse> {
    try {
      const sourceId = checkSourceId("mx_source_id", request.mxSourceId);
      const workerId = checkName("worker_id", request.workerId);
      const status = statusOf(request.status);
      if (status === undefined) throw unknownStatus(request.status);
      const { workerRank } = request;
      const key = { sourceId, workerId };
      const refusal = await this.#registry.updateStatus({ key, status, workerRank }, signal, by);
      const message =
        refusal === undefined ? "" : `Cannot update "${sourceId}/${workerId}": ${refusal}`;
      return create(UpdateStatusResponseSchema, { success: refusal === undefined, message });
    } catch (error) {
      return create(UpdateStatusResponseSchema, { success: false, message: refusalOf(error) });
    }
  }
}

/** Whether anything can have been published under the pair; the store need not see what is not. */
function isPossible(sourceId: string, workerId: string): boolean {
  return isSourceId(sourceId) && workerId.length <= limits.nameLengthMax;
}

/** What the client did wrong, in words. Anything else is not an answer and is thrown on. */
function refusalOf(error: unknown): string {
  const { code, message } = asRelightError(error);
  if (code === "request_invalid") return message;
  throw error;
}

/** A worker that says nothing about its status is initializing. */
function publishedStatus(wire: WireStatus): SourceStatus {
  const status = wire === WireStatus.UNKNOWN ? "initializing" : statusOf(wire);
  if (status === undefined) throw unknownStatus(wire);
  return status;
}

/** Null matches nothing: no record has the status UNKNOWN. */
function wantedStatus(wire: WireStatus): SourceStatus | null {
  if (wire === WireStatus.UNKNOWN) return null;
  const status = statusOf(wire);
  if (status === undefined) throw unknownStatus(wire);
  return status;
}

function unknownStatus(wire: number): RelightError {
  return new RelightError(
    "request_invalid",
    `Cannot read the status: ${wire} is not a known value`,
  );
}

function publishedIn(body: Uint8Array): {
  identity: PublishMetadataRequest["identity"];
  worker: WorkerMetadata;
} {
  try {
    const { identity, worker } = fromBinary(PublishMetadataRequestSchema, body);
    if (identity !== undefined && worker !== undefined) return { identity, worker };
  } catch (cause) {
    throw new RelightError("store_corrupt", "Cannot read a stored worker: not a message", {
      cause,
    });
  }
  throw new RelightError("store_corrupt", "Cannot read a stored worker: a part is missing");
}
