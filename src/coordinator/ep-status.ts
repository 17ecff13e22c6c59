// SPDX-License-Identifier: Apache-2.0
// What is told about an expert group to people and launchers, the same over gRPC and HTTP; and what they
// ask for, checked.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { findOperation } from "../elastic/begin.ts";
import type { GroupKeeper } from "../elastic/keeper.ts";
import {
  type OperationKind as Kind,
  type Operation,
  type OperationRequest,
  operationLimits,
} from "../elastic/operation.ts";
import { RelightError } from "../errors.ts";
import {
  type BeginRequest,
  type GroupStatus,
  GroupStatusSchema,
  OperationKind,
  type OperationStatusSchema,
} from "../protocol/gen/ep_pb.ts";
import { checkName, refuse } from "./validate.ts";

/** @throws RelightError `not_found` for an operation that is not known. */
export function groupStatus(keeper: GroupKeeper, operationId: string): GroupStatus {
  const { group } = keeper;
  if (group === null) {
    throw new RelightError("not_found", `Cannot find group "${keeper.name}": nobody has joined it`);
  }
  const effective = keeper.effective();
  const latest = group.operation ?? group.finished.at(-1) ?? null;
  const operation = operationId === "" ? latest : findOperation(group, operationId);
  if (operation === null && operationId !== "") {
    throw new RelightError("not_found", `Cannot find operation "${operationId}"`);
  }
  return create(GroupStatusSchema, {
    group: group.config.group,
    epoch: group.epoch,
    generation: group.generation,
    effectiveRanks: [...effective.ranks],
    safeToDeleteRanks: [...effective.safeToDeleteRanks],
    lostExperts: [...effective.lostExperts],
    slots: group.slots.map(({ slot, state, incarnation, occupant, ended }) => ({
      slot,
      state,
      incarnation,
      memberId: occupant?.memberId ?? "",
      nodeId: occupant?.process.nodeId ?? "",
      pid: occupant?.process.pid ?? 0,
      ended: ended ?? "",
      experts: group.placement.filter((copies) => copies.some((copy) => copy.slot === slot)).length,
      launchedStep: keeper.heard(occupant?.memberId ?? "")?.status.launchedStep ?? 0,
    })),
    ...(operation === null ? {} : { operation: operationStatus(operation) }),
  });
}

function operationStatus(operation: Operation): MessageInitShape<typeof OperationStatusSchema> {
  const { request, by, phase, phases, ranksBefore, joined, removed, movedExperts, error } =
    operation;
  return {
    operationId: request.operationId,
    kind: wireKinds[request.kind],
    ranks: request.ranks,
    remove: [...request.remove],
    by,
    phase,
    phases: phases.map((one) => ({ phase: one.phase, atMs: one.atMs })),
    ranksBefore: [...ranksBefore],
    joined: joined.map(({ slot }) => slot),
    removed: removed.map(({ slot }) => slot),
    movedExperts,
    errorCode: error?.code ?? "",
    errorMessage: error?.message ?? "",
  };
}

/** @throws RelightError `request_invalid`. */
export function readBegin(request: BeginRequest): OperationRequest {
  const { operationId, kind, ranks, remove, expectedEpoch, timeoutMs, confirmsDeath } = request;
  return {
    operationId: checkName("operation_id", operationId),
    kind: kinds.get(kind) ?? refuse("kind", String(kind), "scale, remove or recover"),
    ranks,
    remove: [...new Set(remove)].sort((a, b) => a - b),
    expectedEpoch: expectedEpoch ?? null,
    timeoutMs: timeoutMs === 0 ? operationLimits.timeoutMsDefault : timeoutMs,
    confirmsDeath,
  };
}

const wireKinds: Readonly<Record<Kind, OperationKind>> = {
  scale: OperationKind.SCALE,
  remove: OperationKind.REMOVE,
  recover: OperationKind.RECOVER,
};

const kinds = new Map<OperationKind, Kind>([
  [OperationKind.SCALE, "scale"],
  [OperationKind.REMOVE, "remove"],
  [OperationKind.RECOVER, "recover"],
]);
