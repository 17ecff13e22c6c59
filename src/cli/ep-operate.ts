// SPDX-License-Identifier: Apache-2.0
// What scale, remove and recover share: begin the operation, then follow it to its end. The id makes it
// safe to call again: after a lost answer, give the same one.

import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { boolean, duration, integer, text } from "../config/kinds.ts";
import { type Code, codes, RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import type { BeginRequestSchema, GroupStatus } from "../protocol/gen/ep_pb.ts";
import type { Context } from "./command.ts";
import { openEpClient } from "./ep-connect.ts";
import { epStatusJson, epStatusText } from "./ep-text.ts";

export const operationFlags = {
  operation_id: text({ fallback: "", about: "Of your choice; the same id is the same operation." }),
  expected_epoch: integer({
    fallback: null,
    min: 0,
    max: 2 ** 31,
    about: "Refuse when the group is at another epoch.",
  }),
  timeout: duration({
    fallback: "5min",
    minMs: 100,
    maxMs: 3_600_000,
    about: "Longest time until the commit; past it the group is as before.",
  }),
  wait: boolean({ fallback: "true", about: "Follow it to its end." }),
} as const;

const everyMs = 100;

export async function runOperation(
  { config, flags, operands, output, signal }: Context<typeof operationFlags>,
  what: MessageInitShape<typeof BeginRequestSchema>,
): Promise<number> {
  using client = await openEpClient(config, signal);
  const [group = ""] = operands;
  const operationId = flags.operation_id === "" ? randomUUID() : flags.operation_id;
  const expected = flags.expected_epoch === null ? {} : { expectedEpoch: flags.expected_epoch };
  const timeoutMs = flags.timeout;
  let status = await client.begin({ ...what, ...expected, group, operationId, timeoutMs });
  let phase = "";
  while (flags.wait && !isEnded(status)) {
    if (status.operation !== undefined && status.operation.phase !== phase) {
      phase = status.operation.phase;
      output.note(`${operationId}: ${phase}`);
    }
    await systemClock.sleep(everyMs, signal);
    status = await client.describe(group, operationId);
  }
  output.result(epStatusJson(status), () => epStatusText(status));
  const { operation } = status;
  if (operation?.phase !== "aborted") return 0;
  const code: Code = isCode(operation.errorCode) ? operation.errorCode : "conflict";
  throw new RelightError(code, operation.errorMessage);
}

function isEnded({ operation }: GroupStatus): boolean {
  return operation === undefined || operation.phase === "done" || operation.phase === "aborted";
}

function isCode(text: string): text is Code {
  return Object.hasOwn(codes, text);
}
