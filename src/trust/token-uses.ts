// SPDX-License-Identifier: Apache-2.0
// How often each join token was used. Pure: whoever enrols persists the result before it answers, or a
// crash would give a token one more use.

import { invalidToken, type JoinToken } from "./join-token.ts";
import { timeMs } from "./time.ts";

/** By token id. Entries of tokens that have ended are dropped: they are refused by their date. */
export type TokenUses = ReadonlyMap<string, { readonly used: number; readonly expiresAt: number }>;

/** @throws RelightError `token_invalid` when the token has no use left. */
export function countUse(uses: TokenUses, token: JoinToken, now: number): TokenUses {
  const used = uses.get(token.id)?.used ?? 0;
  if (used >= token.uses) invalidToken(`it was used ${used} of ${token.uses} times`);
  const alive = [...uses].filter(([, { expiresAt }]) => expiresAt > now);
  return new Map([
    ...alive,
    [token.id, { used: used + 1, expiresAt: timeMs(token.expiresAt) }] as const,
  ]);
}
