// SPDX-License-Identifier: Apache-2.0
// How an operation begins, is found again by its id, and is taken back before its commit.

import { RelightError } from "../errors.ts";
import type { Group } from "./group.ts";
import {
  enter,
  isBeforeCommit,
  type Operation,
  type OperationRequest,
  operationLimits,
} from "./operation.ts";
import { isStaying, slotsMax } from "./view.ts";

/** @returns the operation of that id when it is known, for the same body. @throws RelightError `conflict`. */
export function knownOperation(group: Group, request: OperationRequest): Operation | null {
  const known = findOperation(group, request.operationId);
  if (known === null || isSameRequest(known.request, request)) return known;
  throw new RelightError(
    "conflict",
    `Cannot begin "${request.operationId}": an operation of that id asks for something else`,
  );
}

export function findOperation(group: Group, operationId: string): Operation | null {
  const all = group.operation === null ? group.finished : [...group.finished, group.operation];
  return all.findLast(({ request }) => request.operationId === operationId) ?? null;
}

/**
 * Opens it; nothing has happened yet.
 * @throws RelightError `request_invalid`; `conflict`; `ep_epoch_changed`; `ep_operation_open`.
 */
export function beginOperation(
  group: Group,
  request: OperationRequest,
  { by, nowMs }: { readonly by: Operation["by"]; readonly nowMs: number },
): Group {
  if (knownOperation(group, request) !== null) return group;
  checkRequest(group, request);
  const { expectedEpoch } = request;
  if (expectedEpoch !== null && expectedEpoch !== group.epoch) {
    throw new RelightError(
      "ep_epoch_changed",
      `Cannot begin "${request.operationId}": the group is at epoch ${group.epoch}, it expects ${expectedEpoch}`,
    );
  }
  const open = group.operation;
  // What the controller began for itself gives way: the operator's target covers it, and what is left
  // of a committed change goes on by itself.
  if (open !== null && open.by === "operator") {
    throw new RelightError(
      "ep_operation_open",
      `Cannot begin "${request.operationId}": "${open.request.operationId}" is ${open.phase}`,
    );
  }
  const finished =
    open === null ? group.finished : remember(group, superseded(open, request, nowMs));
  const operation: Operation = {
    request,
    by,
    phase: "planned",
    phases: [{ phase: "planned", atMs: nowMs }],
    ranksBefore: group.slots.filter(isStaying).map(({ slot }) => slot),
    joined: [],
    removed: [],
    movedExperts: 0,
    epoch: null,
    error: null,
  };
  const targetRanks = by === "operator" ? targetOf(group, request) : group.targetRanks;
  return { ...group, finished, operation, transition: null, targetRanks };
}

function superseded(open: Operation, by: OperationRequest, nowMs: number): Operation {
  if (!isBeforeCommit(open)) {
    return enter(open, open.phase === "committed" ? "done" : "aborted", nowMs);
  }
  const message = `"${by.operationId}" took its place`;
  return { ...enter(open, "aborted", nowMs), error: { code: "cancelled", message } };
}

/** The ranks that `recover` comes back to. */
function targetOf(group: Group, { kind, ranks, remove }: OperationRequest): number {
  if (kind === "scale") return ranks;
  const left = group.slots.filter((slot) => isStaying(slot) && !remove.includes(slot.slot));
  return kind === "remove" ? left.length : group.targetRanks;
}

function checkRequest(group: Group, request: OperationRequest): void {
  const { kind, ranks, remove, timeoutMs, operationId } = request;
  const { idLengthMax, timeoutMsMin, timeoutMsMax } = operationLimits;
  const { slotCount } = group.config;
  const wrong =
    operationId.length === 0 || operationId.length > idLengthMax
      ? `an id has 1 to ${idLengthMax} characters`
      : kind === "scale" && !(ranks >= 1 && ranks <= slotCount)
        ? `ranks is ${ranks}, want 1 to ${slotCount}`
        : kind === "remove" && !(remove.length >= 1 && remove.length <= slotsMax)
          ? "no rank is named to remove"
          : remove.some((slot) => !(Number.isInteger(slot) && slot >= 0 && slot < slotCount))
            ? `ranks are 0 to ${slotCount - 1}`
            : !(timeoutMs >= timeoutMsMin && timeoutMs <= timeoutMsMax)
              ? `timeout is ${timeoutMs} ms, want ${timeoutMsMin} to ${timeoutMsMax}`
              : null;
  if (wrong === null) return;
  throw new RelightError("request_invalid", `Cannot begin "${operationId}": ${wrong}`);
}

/**
 * Back to what was, from every phase before the commit. Aborting what is aborted is nothing.
 * @throws RelightError `not_found`; `ep_committed` when there is no way back.
 */
export function abortOperation(group: Group, operationId: string, nowMs: number): Group {
  const operation = findOperation(group, operationId);
  if (operation === null) {
    throw new RelightError("not_found", `Cannot abort "${operationId}": no such operation`);
  }
  if (operation.phase === "aborting" || operation.phase === "aborted") return group;
  if (!isBeforeCommit(operation)) {
    throw new RelightError(
      "ep_committed",
      `Cannot abort "${operationId}": it is ${operation.phase}`,
    );
  }
  const error = { code: "cancelled", message: "It was aborted on request" };
  return {
    ...group,
    transition: null,
    operation: { ...enter(operation, "aborting", nowMs), error },
  };
}

export function remember(group: Group, ended: Operation): readonly Operation[] {
  return [...group.finished, ended].slice(-operationLimits.finishedMax);
}

function isSameRequest(a: OperationRequest, b: OperationRequest): boolean {
  return (
    a.kind === b.kind &&
    a.ranks === b.ranks &&
    a.expectedEpoch === b.expectedEpoch &&
    a.timeoutMs === b.timeoutMs &&
    a.confirmsDeath === b.confirmsDeath &&
    a.remove.length === b.remove.length &&
    a.remove.every((slot, at) => slot === b.remove[at])
  );
}
