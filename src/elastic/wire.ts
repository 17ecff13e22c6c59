// SPDX-License-Identifier: Apache-2.0
// Everything of an expert group that comes from outside, checked in one place: words of members, views
// of the coordinator, records of the store, messages between a rank and its agent. UTF-8 JSON.

import { z } from "zod";
import { type Code, RelightError } from "../errors.ts";
import type { Group } from "./group.ts";
import { operationPhases } from "./operation.ts";
import type { Command, JoinRequest, Report } from "./session.ts";
import type { Status } from "./status.ts";
import { expertsMax, incarnationMax, slotsMax, type View } from "./view.ts";

/** What a member may say in one word. */
export const statusBytesMax = 64 * 1_024;
/** A view of 512 experts with 32 copies each, and a plan for as many. */
export const viewBytesMax = 4 * 1_024 * 1_024;

const name = z.string().min(1).max(256);
const text = z.string().max(1_024);
const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const slot = z
  .number()
  .int()
  .min(0)
  .max(slotsMax - 1);
const incarnation = z.number().int().min(0).max(incarnationMax);
const seat = z.strictObject({ slot, incarnation });
const seats = z.array(seat).max(256);
const config = z.strictObject({
  group: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/),
  slotCount: z.number().int().min(1).max(slotsMax),
  expertCount: z.number().int().min(1).max(expertsMax),
  localExpertsMax: z.number().int().min(1).max(expertsMax),
  redundantCount: z
    .number()
    .int()
    .min(0)
    .max(expertsMax * slotsMax),
  expertBytes: count,
  shape: text,
  admission: z.enum(["automatic", "operation"]),
});
const occupant = z.strictObject({
  memberId: name,
  process: z.strictObject({ nodeId: name, bootId: name, pid: count, startTicks: count }),
  address: text,
  owner: text.nullable(),
});
const join = z.strictObject({ config, occupant, wantedSlot: slot.nullable() });
const step = count;
const status = z.strictObject({
  memberId: name,
  sequence: count,
  seat: seat.nullable(),
  generation: count,
  holds: seats,
  mapped: seats,
  ready: count,
  armed: count,
  refused: count,
  maskedEpoch: count,
  faulty: z.array(z.strictObject({ epoch: count, firstFaultyStep: step.nullable() })).max(64),
  launchedStep: step,
  completedStep: step,
  suspects: z.array(z.strictObject({ seat, step })).max(64),
  isLeaving: z.boolean(),
  isQuiesced: z.boolean(),
  isHungUp: z.boolean(),
  gone: seats,
});

const ended = z.enum(["left", "aborted", "exited", "hung_up", "silent", "suspected"]);
const slotRecord = z.strictObject({
  slot,
  state: z.enum(["EMPTY", "STAGED", "ACTIVE", "SUSPECT", "DEAD"]),
  incarnation,
  occupant: occupant.nullable(),
  onAtStep: step.nullable(),
  offAtStep: step.nullable(),
  isEndKnown: z.boolean(),
  ended: ended.nullable(),
  endedGeneration: count,
});
const local = z
  .number()
  .int()
  .min(0)
  .max(expertsMax - 1);
const copy = z.strictObject({ slot, local });
const placement = z.array(z.array(copy).max(slotsMax)).max(expertsMax);
const flip = z.strictObject({ number: count, epoch: count, atStep: step });
const transition = z.strictObject({
  number: count,
  joiners: seats,
  leavers: seats,
  placement,
  flip: flip.nullable(),
  attempts: count,
});
const committed = z.strictObject({
  number: count,
  generation: count,
  flip,
  leavers: seats,
  placement,
});
const fault = z.strictObject({
  epoch: count,
  seat,
  ended,
  firstFaultyStep: step.nullable(),
  isSettled: z.boolean(),
});
const viewShape = {
  config,
  generation: count,
  epoch: count,
  slots: z.array(slotRecord).max(slotsMax),
  placement,
  transition: transition.nullable(),
  committed: committed.nullable(),
  faults: z.array(fault).max(64),
};
const view = z.strictObject(viewShape);

const phase = z.enum(operationPhases);
const operation = z.strictObject({
  request: z.strictObject({
    operationId: name,
    kind: z.enum(["scale", "remove", "recover"]),
    ranks: count,
    remove: z.array(slot).max(slotsMax),
    expectedEpoch: count.nullable(),
    timeoutMs: count,
    confirmsDeath: z.boolean(),
  }),
  by: z.enum(["operator", "automatic"]),
  phase,
  phases: z.array(z.strictObject({ phase, atMs: z.number() })).max(256),
  ranksBefore: z.array(slot).max(slotsMax),
  joined: seats,
  removed: seats,
  movedExperts: count,
  epoch: count.nullable(),
  error: z.strictObject({ code: name, message: z.string().max(4_096) }).nullable(),
});
const record = z.strictObject({
  ...viewShape,
  lastNumber: count,
  lastStep: step,
  targetRanks: count,
  operation: operation.nullable(),
  finished: z.array(operation).max(256),
  accusedAtMs: z.number().nullable(),
  proposedAtMs: z.number().nullable(),
});

const report = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("mapped"), seat }),
  z.strictObject({ type: z.literal("unmapped"), seat }),
  z.strictObject({ type: z.literal("ready"), number: count }),
  z.strictObject({ type: z.literal("armed"), number: count }),
  z.strictObject({ type: z.literal("refused"), number: count, launchedStep: step }),
  z.strictObject({ type: z.literal("masked"), epoch: count, firstFaultyStep: step.nullable() }),
  z.strictObject({ type: z.literal("progress"), launchedStep: step, completedStep: step }),
  z.strictObject({ type: z.literal("suspect"), seat, step }),
  z.strictObject({ type: z.literal("load"), experts: z.array(z.number()).max(expertsMax) }),
  z.strictObject({ type: z.literal("leave") }),
  z.strictObject({ type: z.literal("quiesced") }),
]);

/** What a rank says to its agent. */
const rankMessage = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("join"), request: join, resume: status.nullable() }),
  z.strictObject({ type: z.literal("report"), number: count, report }),
]);

export type RankMessage =
  | { readonly type: "join"; readonly request: JoinRequest; readonly resume: Status | null }
  | { readonly type: "report"; readonly number: number; readonly report: Report };

/** What an agent says to a rank. */
export type AgentMessage =
  | { readonly type: "command"; readonly command: Command }
  /** The rank's word up to `number` is in `status`, by which another agent can take the rank up. */
  | { readonly type: "kept"; readonly number: number; readonly status: Status }
  | { readonly type: "view"; readonly view: View }
  | { readonly type: "refused"; readonly code: string; readonly message: string };

export function encode(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** @throws RelightError `request_invalid`. */
export function readStatus(bytes: Uint8Array): Status {
  return read(bytes, { schema: status, what: "the word of a member", bytesMax: statusBytesMax });
}

/** @throws RelightError `request_invalid`. */
export function readJoin(bytes: Uint8Array): JoinRequest {
  return read(bytes, { schema: join, what: "a request to join", bytesMax: statusBytesMax });
}

/** @throws RelightError `coordinator_refused`. */
export function readView(bytes: Uint8Array): View {
  const code = "coordinator_refused";
  return read(bytes, { schema: view, what: "a view", bytesMax: viewBytesMax, code });
}

/** @throws RelightError `store_corrupt`. */
export function readRecord(bytes: Uint8Array): Group {
  const what = "the record of an expert group";
  return read(bytes, { schema: record, what, bytesMax: viewBytesMax, code: "store_corrupt" });
}

/** @throws RelightError `request_invalid`. */
export function readRankMessage(bytes: Uint8Array): RankMessage {
  return read(bytes, { schema: rankMessage, what: "a rank's message", bytesMax: statusBytesMax });
}

function read<Value>(
  bytes: Uint8Array,
  form: {
    readonly schema: z.ZodType<Value>;
    readonly what: string;
    readonly bytesMax: number;
    readonly code?: Code;
  },
): Value {
  const { schema, what, bytesMax, code = "request_invalid" } = form;
  const fail = (why: string, cause?: unknown): never => {
    throw new RelightError(code, `Cannot read ${what}: ${why}`, { cause });
  };
  if (bytes.byteLength > bytesMax) return fail(`${bytes.byteLength} bytes, at most ${bytesMax}`);
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch (error) {
    return fail("it is not JSON", error);
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  return fail(`${issue?.path.join(".") ?? ""} ${issue?.message ?? ""}`);
}
