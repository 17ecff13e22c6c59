// SPDX-License-Identifier: Apache-2.0
// The status of an expert group for people and for machines: the same facts.

import { toJson } from "@bufbuild/protobuf";
import type { Json } from "../core/canonical-json.ts";
import {
  type GroupStatus,
  GroupStatusSchema,
  type OperationStatus,
} from "../protocol/gen/ep_pb.ts";
import { formatTable } from "./output.ts";

export function epStatusJson(status: GroupStatus): { readonly [key: string]: Json } {
  const options = { useProtoFieldName: true, alwaysEmitImplicit: true };
  // Messages are objects in protobuf's JSON.
  return toJson(GroupStatusSchema, status, options) as { readonly [key: string]: Json };
}

export function epStatusText(status: GroupStatus): string {
  const { group, epoch, effectiveRanks, safeToDeleteRanks, lostExperts, slots, operation } = status;
  const lines = [
    `group ${group}, epoch ${epoch}`,
    `ranks ${list(effectiveRanks)}; safe to delete ${list(safeToDeleteRanks)}; lost experts ${list(lostExperts)}`,
    formatTable([
      ["SLOT", "STATE", "INCARNATION", "NODE", "PID", "EXPERTS", "STEP", "ENDED"],
      ...slots
        .filter(({ state }) => state !== "EMPTY")
        .map((slot) => [
          String(slot.slot),
          slot.state,
          String(slot.incarnation),
          slot.nodeId,
          String(slot.pid),
          String(slot.experts),
          String(slot.launchedStep),
          slot.ended,
        ]),
    ]),
  ];
  return [...lines, ...(operation === undefined ? [] : [operationText(operation)])].join("\n");
}

function operationText(operation: OperationStatus): string {
  const { operationId, by, phases, movedExperts, errorCode, errorMessage } = operation;
  const steps = phases.map(({ phase, atMs }, at) => {
    const next = phases[at + 1];
    return next === undefined ? phase : `${phase} ${Math.round(next.atMs - atMs)} ms`;
  });
  const why = errorCode === "" ? "" : `; ${errorCode}: ${errorMessage}`;
  return `operation ${operationId} (${by}): ${steps.join(", ")}; ${movedExperts} experts moved${why}`;
}

function list(values: readonly number[]): string {
  return values.length === 0 ? "-" : values.join(",");
}
