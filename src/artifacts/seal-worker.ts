// SPDX-License-Identifier: Apache-2.0
// The thread on which caches are sealed: walking and hashing a large cache takes a second of pure CPU
// and must not hold up the agent's loop. Remembers the last seal of each root, so that the next reads
// only what changed. sealer.ts is its other side.

import { parentPort } from "node:worker_threads";
import { asRelightError, assert } from "../errors.ts";
import { familyNamed } from "./families.ts";
import type { Family } from "./family.ts";
import { checkpointFamily } from "./kinds/checkpoint.ts";
import { customFamily } from "./kinds/custom.ts";
import { cleanSpool } from "./portable-file.ts";
import { type SealedFile, seal } from "./seal.ts";
import type { SealAnswer, SealOrder } from "./sealer.ts";

const known = new Map<string, ReadonlyMap<string, SealedFile>>();

assert(parentPort !== null, "seal-worker.ts runs as a worker thread");
const port = parentPort;
port.on("message", (order: SealOrder) => port.postMessage(answer(order)));

function familyOf({ family, root }: SealOrder): Family {
  if (family.kind === "checkpoint")
    return checkpointFamily({ folder: root, allowsCode: family.allowsCode, rank: null });
  return family.kind === "custom" ? customFamily(family.name, root) : familyNamed(family.name);
}

function answer(order: SealOrder): SealAnswer {
  try {
    const given = order.known.map((file) => [file.entry.path, file] as const);
    const last = new Map([...(known.get(order.root) ?? []), ...given]);
    const result = seal({ ...order, family: familyOf(order), known: last });
    const keep = result?.files.flatMap(({ spooled }) => spooled ?? []) ?? [];
    cleanSpool(order.root, { keep, nowMs: order.settledBeforeMs });
    known.set(order.root, new Map(result?.files.map((file) => [file.entry.path, file]) ?? []));
    return { id: order.id, seal: result };
  } catch (thrown) {
    const { code, message, details } = asRelightError(thrown);
    return { id: order.id, error: { code, message, details } };
  }
}
