// SPDX-License-Identifier: Apache-2.0
// What a record counts for at this moment: the store's word, its session's and the clock's together.
// A record whose session has ended counts for nothing, though the store may not have heard of it yet.

import { type SourceHead, shelfOf } from "../store/store.ts";
import type { Ages } from "./lifecycle.ts";
import type { RegistryLimits } from "./registry-limits.ts";
import type { Session, Sessions } from "./sessions.ts";

export interface Listed {
  readonly head: SourceHead;
  /** The last word, of the record's session or its own, in unix milliseconds. */
  readonly heardMs: number;
}

export class Standing {
  readonly #sessions: Sessions;
  readonly #now: () => number;
  readonly #limits: RegistryLimits;
  #openedMs = 0;
  #listeningMs = 0;

  constructor(sessions: Sessions, now: () => number, limits: RegistryLimits) {
    this.#sessions = sessions;
    this.#now = now;
    this.#limits = limits;
  }

  open(now: number): void {
    this.#openedMs = now;
    this.#listeningMs = now;
  }

  /** From here on silence counts: the registry runs again after a stall. */
  listenFrom(now: number): void {
    this.#listeningMs = now;
  }

  /** When a session ends unless it is heard before. */
  endOf(session: Session): number {
    return Math.max(session.heardMs, this.#listeningMs) + this.#limits.sessionGraceMs;
  }

  agesOf(head: SourceHead): Ages {
    // A record from the future was written before the clock was set back; it ages from the opening.
    const writtenMs = head.updatedAtMs <= this.#now() ? head.updatedAtMs : this.#openedMs;
    if (head.sessionId === null) return { heardMs: writtenMs, writtenMs };
    const session = this.#sessions.get(head.sessionId);
    if (session === undefined) return { heardMs: Number.NEGATIVE_INFINITY, writtenMs };
    return { heardMs: Math.max(session.heardMs, writtenMs), writtenMs };
  }

  isOffered(head: SourceHead): boolean {
    const { heardMs } = this.agesOf(head);
    const isFresh = this.#now() - heardMs <= this.#limits.heartbeatTimeoutMs;
    return shelfOf(head) !== null && isFresh && this.#isVouched(head);
  }

  /** As clients see it. */
  listed(head: SourceHead): Listed {
    const { heardMs, writtenMs } = this.agesOf(head);
    const isAsStored = head.status === "stale" || this.#isVouched(head);
    const seen = isAsStored ? head : ({ ...head, status: "stale", staleBy: "session" } as const);
    return { head: seen, heardMs: Math.max(heardMs, writtenMs) };
  }

  /** By the last heartbeat of the session that vouches for the record. */
  readersOf(head: SourceHead): number {
    return head.sessionId === null ? 0 : (this.#sessions.get(head.sessionId)?.readers ?? 0);
  }

  /** By the time that has passed, so that a late `advance` does not prolong an offer. */
  #isVouched(head: SourceHead): boolean {
    if (head.sessionId === null) return true;
    const session = this.#sessions.get(head.sessionId);
    return session !== undefined && this.#now() <= this.endOf(session);
  }
}
