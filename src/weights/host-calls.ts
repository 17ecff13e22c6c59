// SPDX-License-Identifier: Apache-2.0
// What engines and other agents may say to a WeightHost, checked once before anything uses it.

import { z } from "zod";
import { RelightError } from "../errors.ts";
import { coordinateSchema } from "./coordinate.ts";

const key = z.string().min(1).max(256);
const ttlMs = z.number().int().min(1).max(3_600_000);
const lease = z.number().int().min(1);
const deviceUuid = z.string().min(1).max(128);
const token = z.string().regex(/^[0-9a-f]{32}$/);
const count = z.number().int().min(0);
const content = z.string().regex(/^[0-9a-f]{64}$/);
/** Sources that the engine names itself. */
const sources = z.array(z.string().min(1).max(1_024)).max(64);

export const calls = {
  publish: z.strictObject({ layout: z.unknown(), deviceUuid }),
  load: z.strictObject({
    layout: z.unknown(),
    deviceUuid,
    sources,
    content: content.nullable(),
  }),
  look: z.strictObject({
    model: z.string().min(1).max(1_024),
    coordinate: coordinateSchema,
    sources,
  }),
  warm: z.strictObject({}),
  change: z.strictObject({ key }),
  changed: z.strictObject({ key }),
  withdraw: z.strictObject({ key }),
  offer: z.strictObject({ key }),
  claim: z.strictObject({
    key,
    generation: z.number().int().min(1),
    ttlMs,
    /** Where the reader can be read itself; one line, for others are told of it. */
    address: z
      .string()
      .regex(/^[^\n]{1,1024}$/)
      .nullable()
      .default(null),
  }),
  renew: z.strictObject({ key, lease, ttlMs }),
  release: z.strictObject({ key, lease }),
  have: z.strictObject({ key, lease, known: z.number().int().min(-1) }),
  ways: z.strictObject({}),
  pair: z.strictObject({ token, id: z.string().regex(/^[0-9a-f]{256}$/) }),
  send: z.strictObject({
    token,
    pair: z.string().regex(/^[0-9a-f]{256}$/),
    /** Allocation, offset, length. */
    ranges: z.array(z.tuple([count, count, count.min(1)])).max(1_024),
  }),
};

export type Arguments<Op extends keyof typeof calls> = z.infer<(typeof calls)[Op]>;

/** @throws request_invalid */
export function read<Op extends keyof typeof calls>(op: Op, args: unknown): Arguments<Op> {
  const parsed = calls[op].safeParse(args);
  // The schema that was looked up is the one of `op`; the union of all results loses that.
  if (parsed.success) return parsed.data as Arguments<Op>;
  const issue = parsed.error.issues[0];
  throw new RelightError(
    "request_invalid",
    `Cannot read the call "${op}": ${issue?.path.join(".")} ${issue?.message}`,
  );
}
