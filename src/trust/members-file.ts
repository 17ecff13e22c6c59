// SPDX-License-Identifier: Apache-2.0
// What the fleet's authority remembers beside its key: how often each join token was used, and which key
// has which name. Two small files of the coordinator's trust folder.

import path from "node:path";
import { z } from "zod";
import { isHex32 } from "../core/digest.ts";
import { RelightError } from "../errors.ts";
import { readSmall } from "../platform/files.ts";
import type { Members } from "./members.ts";
import { memberNamePattern, roles } from "./roles.ts";
import type { TokenUses } from "./token-uses.ts";

const bytesMax = 64 * 1024 * 1024;
const usesShape = z.record(
  z.string().regex(/^[0-9a-f]{32}$/),
  z.strictObject({ used: z.int().min(1), expiresAt: z.int().min(0) }),
);
const membersShape = z.record(
  z.string().refine(isHex32),
  z.strictObject({
    name: z.string().regex(memberNamePattern),
    role: z.enum(roles),
    notAfter: z.int().min(0),
  }),
);

export function usesFileIn(folder: string): string {
  return path.join(folder, "token-uses.json");
}

export function membersFileIn(folder: string): string {
  return path.join(folder, "members.json");
}

/** @throws RelightError `store_corrupt`: what was used must not count as new. */
export function readUses(file: string): TokenUses {
  return new Map(Object.entries(read(file, usesShape)));
}

/** @throws RelightError `store_corrupt`: a name that is held must not be given away. */
export function readMembers(file: string): Members {
  return new Map(Object.entries(read(file, membersShape)));
}

function read<Value>(file: string, shape: z.ZodType<Record<string, Value>>): Record<string, Value> {
  const bytes = readSmall(file, bytesMax);
  if (bytes === null) return {};
  try {
    return shape.parse(JSON.parse(bytes.toString("utf8")));
  } catch (cause) {
    throw new RelightError("store_corrupt", `Cannot read "${file}": it is not what was written`, {
      cause,
    });
  }
}
