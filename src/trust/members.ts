// SPDX-License-Identifier: Apache-2.0
// Whose certificates this fleet's authority has given out and still count: so that a name belongs to one
// key, and so that an operator can see which key to revoke. Pure: whoever enrols persists the result
// before it answers.

import { RelightError } from "../errors.ts";
import type { Role } from "./roles.ts";

export interface EnrolledMember {
  readonly name: string;
  readonly role: Role;
  /** When its newest certificate ends, in Unix milliseconds. */
  readonly notAfter: number;
}

/** By the id of the certified key. Entries of certificates that have ended are dropped. */
export type Members = ReadonlyMap<string, EnrolledMember>;

/**
 * @param asked.mayReplace the operator said by name who joins: a machine that lost its key comes back
 * @throws RelightError `conflict` when another key that counts holds the name.
 */
export function enrolMember(
  members: Members,
  asked: EnrolledMember & { readonly keyId: string; readonly mayReplace: boolean },
  { now, isRevoked }: { readonly now: number; readonly isRevoked: (keyId: string) => boolean },
): Members {
  const { keyId, mayReplace, ...member } = asked;
  const alive = [...members].filter(([, { notAfter }]) => notAfter > now);
  const holder = alive.find(
    ([other, { name }]) => name === member.name && other !== keyId && !isRevoked(other),
  );
  if (holder !== undefined && !mayReplace) {
    throw new RelightError(
      "conflict",
      `Cannot enrol "${member.name}": key ${holder[0]} holds the name until ${new Date(holder[1].notAfter).toISOString()}; want a token made with --node=${member.name}, or that key revoked`,
    );
  }
  return new Map([...alive, [keyId, member] as const]);
}
