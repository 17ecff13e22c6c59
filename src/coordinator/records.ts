// SPDX-License-Identifier: Apache-2.0
// The records of who has what, one word at a time: words about one record are decided in order of
// arrival (lifecycle.ts), written, filed under their next deadline, and told to whoever watches. Records
// grow old here, too. registry.ts says who may say what, and for whom a session vouches.

import { asRelightError, RelightError } from "../errors.ts";
import type { SourceHead, SourceKey, Store, Stored } from "../store/store.ts";
import { type Admitted, mustOwn } from "./access.ts";
import { Deadlines } from "./deadlines.ts";
import { deadlineOf, due, hear, type Word } from "./lifecycle.ts";
import type { RegistryLimits } from "./registry-limits.ts";
import { keyText } from "./sessions.ts";
import type { Standing } from "./standing.ts";
import { Turns } from "./turns.ts";
import type { Watchers } from "./watchers.ts";

/** What a publisher says; the times and the reason of staleness are ours. */
export type Publication = Omit<SourceHead, "updatedAtMs" | "publishedAtMs" | "staleBy">;

/** Sees the record as it is and why the lifecycle refuses the word, if it does. */
type Accepts = (head: SourceHead, refusal: string | undefined) => boolean;

const duePerAdvanceMax = 1_000;
const writeAttemptsMax = 16;

export class Records {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #limits: RegistryLimits;
  readonly #standing: Standing;
  readonly #watchers: Watchers;
  readonly #deadlines = new Deadlines();
  readonly #turns = new Turns();

  constructor(parts: {
    store: Store;
    now: () => number;
    limits: RegistryLimits;
    standing: Standing;
    watchers: Watchers;
  }) {
    this.#store = parts.store;
    this.#now = parts.now;
    this.#limits = parts.limits;
    this.#standing = parts.standing;
    this.#watchers = parts.watchers;
  }

  /** Records known, live or stale. */
  get size(): number {
    return this.#deadlines.size;
  }

  /** Notes when the record has to be looked at next. */
  file(head: SourceHead): void {
    this.#deadlines.add(keyText(head), deadlineOf(head, this.#standing.agesOf(head), this.#limits));
  }

  /** The store did not take a word that nobody will repeat: its deadline says it again. */
  retryLater(key: SourceKey): void {
    this.#deadlines.add(keyText(key), this.#now() + this.#limits.retryMs);
  }

  /**
   * Adds or replaces one record, then asks `isVouched`: when that is false by now, takes it back.
   * @returns false when it was taken back
   */
  publish(
    publication: Publication,
    body: Uint8Array,
    how: { readonly by: Admitted | null; readonly isVouched: () => boolean },
    signal: AbortSignal,
  ): Promise<boolean> {
    return this.#turns.take(keyText(publication), async () => {
      const { before, head } = await this.#replace(publication, body, signal, how.by);
      if (!how.isVouched()) {
        await this.#tellInTurn(keyOf(publication), { type: "withdrawn" }, signal, () => true);
        return false;
      }
      this.#announce(before?.head, head, true);
      return true;
    });
  }

  async #replace(
    publication: Publication,
    body: Uint8Array,
    signal: AbortSignal,
    by: Admitted | null,
  ): Promise<{ before: Stored | undefined; head: SourceHead }> {
    for (let attempt = 0; attempt < writeAttemptsMax; attempt++) {
      const before = await this.#store.get(publication, signal);
      mustOwn(by, "source.publish", before?.head.publisher ?? null);
      const now = this.#now();
      const staleBy = publication.status === "stale" ? "request" : null;
      const head = { ...publication, staleBy, updatedAtMs: now, publishedAtMs: now } as const;
      const replaces = before?.revision ?? null;
      if (!(await this.#store.put({ head, body, replaces, when: "flushed" }, signal))) continue;
      this.file(head);
      return { before, head };
    }
    throw contended(publication);
  }

  /** True when the record was written. `accepts` sees the record and the lifecycle's refusal. */
  tell(key: SourceKey, word: Word, signal: AbortSignal, accepts: Accepts): Promise<boolean> {
    return this.#turns.take(keyText(key), () => this.#tellInTurn(key, word, signal, accepts));
  }

  async #tellInTurn(
    key: SourceKey,
    word: Word,
    signal: AbortSignal,
    accepts: Accepts,
  ): Promise<boolean> {
    for (let attempt = 0; attempt < writeAttemptsMax; attempt++) {
      const before = await this.#store.get(key, signal);
      if (before === undefined) return false;
      const verdict = hear(before.head, word, this.#now());
      const refusal = verdict.type === "refuse" ? verdict.reason : undefined;
      if (!accepts(before.head, refusal) || verdict.type !== "write") return false;
      if (await this.#write(before, verdict.head, signal)) return true;
    }
    throw contended(key);
  }

  async #write(before: Stored, head: SourceHead, signal: AbortSignal): Promise<boolean> {
    // A refresh that a power cut loses costs one heartbeat; a change of status must not be lost.
    const when = before.head.status === head.status ? "committed" : "flushed";
    if (!(await this.#store.put({ head, replaces: before.revision, when }, signal))) return false;
    this.file(head);
    this.#announce(before.head, head, false);
    return true;
  }

  #announce(before: SourceHead | undefined, after: SourceHead, published: boolean): void {
    const was = before !== undefined && this.#standing.isOffered(before);
    const is = this.#standing.isOffered(after);
    if (is && (published || !was)) {
      this.#watchers.tell({ type: was ? "updated" : "added", head: after });
    } else if (was && !is) {
      this.#watchers.tell({ type: "removed", key: keyOf(after) });
    }
  }

  /** Marks silent records stale and removes old ones: what is due, no more. */
  async advance(
    signal: AbortSignal,
  ): Promise<{ markedStale: number; removed: number; failure: RelightError | null }> {
    const now = this.#now();
    const texts: string[] = [];
    while (texts.length < duePerAdvanceMax) {
      const text = this.#deadlines.take(now);
      if (text === undefined) break;
      texts.push(text);
    }
    const done = await Promise.allSettled(texts.map((text) => this.#fall(text, signal)));
    const settled = done.map((result) => (result.status === "fulfilled" ? result.value : "failed"));
    const failed = done.find(({ status }) => status === "rejected");
    return {
      markedStale: settled.filter((kind) => kind === "write").length,
      removed: settled.filter((kind) => kind === "remove").length,
      failure: failed?.status === "rejected" ? asRelightError(failed.reason) : null,
    };
  }

  async #fall(text: string, signal: AbortSignal): Promise<"gone" | "wait" | "write" | "remove"> {
    const key = keyOfText(text);
    try {
      return await this.#turns.take(text, () => this.#fallInTurn(key, signal));
    } catch (error) {
      this.retryLater(key);
      throw error;
    }
  }

  async #fallInTurn(
    key: SourceKey,
    signal: AbortSignal,
  ): Promise<"gone" | "wait" | "write" | "remove"> {
    for (let attempt = 0; attempt < writeAttemptsMax; attempt++) {
      const stored = await this.#store.get(key, signal);
      if (stored === undefined) return "gone";
      const { head } = stored;
      const next = due(head, this.#standing.agesOf(head), this.#now(), this.#limits);
      if (next.type === "wait") {
        this.#deadlines.add(keyText(key), next.untilMs);
        return "wait";
      }
      const done =
        next.type === "remove"
          ? await this.#store.remove(key, stored.revision, signal)
          : await this.#write(stored, next.head, signal);
      if (done) return next.type;
    }
    throw contended(key);
  }
}

export function keyOf(key: SourceKey): SourceKey {
  return { sourceId: key.sourceId, workerId: key.workerId };
}

/** The inverse of `keyText`: a source id is 16 characters. */
function keyOfText(text: string): SourceKey {
  return { sourceId: text.slice(0, 16), workerId: text.slice(17) };
}

function contended(key: SourceKey): RelightError {
  return new RelightError(
    "store_unavailable",
    `Cannot write "${keyText(key)}": others changed it ${writeAttemptsMax} times meanwhile`,
  );
}
