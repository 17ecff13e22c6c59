// SPDX-License-Identifier: Apache-2.0
// Bearer tokens for clients that have nothing else, such as those of ModelExpress. A file with one
// `ROLE NAME TOKEN` a line; it is read again when it changes, so that two tokens overlap while they rotate.

import { createHash, timingSafeEqual } from "node:crypto";
import { RelightError } from "../errors.ts";
import { type Caller, isRole } from "./roles.ts";

export interface BearerTokens {
  readonly entries: readonly { readonly caller: Caller; readonly hash: Buffer }[];
}

export const bearerLimits = { fileBytesMax: 256 * 1024, entriesMax: 1_000 } as const;

/** 32 characters of base64 are 192 bits: guessing is hopeless whatever the rate. */
const tokenShape = /^[A-Za-z0-9._~+/=-]{32,512}$/;
const nameShape = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** @throws RelightError `config_invalid`; the message never holds a token. */
export function readBearerTokens(bytes: Buffer): BearerTokens {
  if (bytes.length > bearerLimits.fileBytesMax)
    invalid(`${bytes.length} bytes, want at most ${bearerLimits.fileBytesMax}`);
  const lines = bytes.toString("utf8").split("\n");
  const entries = lines.flatMap((line, index) => readLine(line.trim(), index + 1));
  if (entries.length > bearerLimits.entriesMax)
    invalid(`${entries.length} tokens, want at most ${bearerLimits.entriesMax}`);
  if (new Set(entries.map(({ hash }) => hash.toString("hex"))).size < entries.length)
    invalid("two lines hold one token");
  return { entries };
}

/**
 * Whose token this is; null for nobody's. Takes the same time whichever entry matches and wherever a
 * wrong token differs: digests of equal length are compared, all of them.
 */
export function findBearer(tokens: BearerTokens, presented: string): Caller | null {
  const hash = hashOf(presented.slice(0, 1_024));
  let found: Caller | null = null;
  for (const entry of tokens.entries) {
    if (timingSafeEqual(entry.hash, hash)) found = entry.caller;
  }
  return found;
}

function readLine(line: string, number: number) {
  if (line === "" || line.startsWith("#")) return [];
  const [role = "", name = "", token = "", ...rest] = line.split(/\s+/);
  if (!isRole(role)) return invalid(`line ${number} names no role`);
  if (!nameShape.test(name)) invalid(`line ${number} names no caller`);
  if (!tokenShape.test(token) || rest.length > 0)
    invalid(`line ${number} holds no token of at least 32 characters`);
  return [{ caller: { role, name }, hash: hashOf(token) }];
}

function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}

function invalid(reason: string): never {
  throw new RelightError("config_invalid", `Cannot read file of bearer tokens: ${reason}`);
}
