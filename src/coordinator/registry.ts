// SPDX-License-Identifier: Apache-2.0
// Who has what, and who may say so. Holds no socket and no timer: the store and the clock are arguments,
// and whoever owns it calls `advance()` often enough, so that the simulator runs this very code. What a
// session vouches for is withheld the moment the session ends, before the store has heard of it; the
// records themselves are in records.ts.

import { asRelightError, RelightError } from "../errors.ts";
import type {
  Boot,
  SourceHead,
  SourceKey,
  SourceStatus,
  Store,
  StoredWithBody,
} from "../store/store.ts";
import { type Admitted, mustOwn } from "./access.ts";
import { Deadlines } from "./deadlines.ts";
import { Finder, type Found } from "./finder.ts";
import type { Word } from "./lifecycle.ts";
import { keyOf, type Publication, Records } from "./records.ts";
import { type RegistryLimits, registryDefaults } from "./registry-limits.ts";
import { hearWord, keyText, type Session, Sessions } from "./sessions.ts";
import { type Listed, Standing } from "./standing.ts";
import { type Listener, Watchers } from "./watchers.ts";

export interface RegistryOptions {
  readonly store: Store;
  /** Unix milliseconds that never jump: a step of the wall clock must not age a fleet. */
  readonly clock: { readonly now: () => number };
  readonly newSessionId: () => string;
  readonly limits?: Partial<RegistryLimits>;
}

export interface Advanced {
  readonly sessionsLost: number;
  readonly markedStale: number;
  readonly removed: number;
  /** The first failure; what it concerned is tried again after `retryMs`. */
  readonly failure: RelightError | null;
}

export class Registry {
  readonly limits: RegistryLimits;
  readonly #store: Store;
  readonly #now: () => number;
  readonly #newSessionId: () => string;
  readonly #sessions = new Sessions();
  readonly #sessionDeadlines = new Deadlines();
  readonly #watchers = new Watchers();
  readonly #standing: Standing;
  readonly #finder: Finder;
  readonly #records: Records;
  #advancedMs = Number.POSITIVE_INFINITY;

  constructor(options: RegistryOptions) {
    this.limits = { ...registryDefaults, ...options.limits };
    this.#store = options.store;
    this.#now = options.clock.now;
    this.#newSessionId = options.newSessionId;
    this.#standing = new Standing(this.#sessions, this.#now, this.limits);
    const { store } = options;
    const [now, limits, standing, watchers] = [
      this.#now,
      this.limits,
      this.#standing,
      this.#watchers,
    ];
    this.#records = new Records({ store, now, limits, standing, watchers });
    this.#finder = new Finder(options.store, this.#standing, this.limits.findWindow);
  }

  /** Records known, live or stale. */
  get sourceCount(): number {
    return this.#records.size;
  }

  get sessionCount(): number {
    return this.#sessions.size;
  }

  /**
   * Reads the store once and files every deadline again. Sessions of active records get one grace
   * period to come back, because while nobody listened silence proves nothing.
   */
  async open(signal: AbortSignal): Promise<void> {
    this.#standing.open(this.#now());
    for await (const heads of this.#store.all(signal)) {
      for (const head of heads) this.#recall(head);
    }
    this.#standing.listenFrom(this.#now());
  }

  #recall(head: SourceHead): void {
    if (head.sessionId !== null && head.status !== "stale") {
      const known = this.#sessions.get(head.sessionId);
      const unknown = { nodeId: "", agentEndpoint: "", owner: head.publisher };
      const session = known ?? this.#openSession(head.sessionId, unknown);
      session.sources.set(keyText(head), keyOf(head));
    }
    this.#records.file(head);
  }

  // Sessions

  /**
   * Takes up the session named, or opens a new one when it has ended.
   * @throws RelightError `role_denied` when somebody else opened it; `conflict` when too many are open.
   */
  hello(
    agent: { nodeId: string; agentEndpoint: string; sessionId: string | null },
    by: Admitted | null = null,
  ): {
    id: string;
    resumed: boolean;
  } {
    const known = agent.sessionId === null ? undefined : this.#sessions.get(agent.sessionId);
    if (known !== undefined) mustOwn(by, "session.open", known.owner);
    if (known !== undefined && (known.nodeId === "" || known.nodeId === agent.nodeId)) {
      known.nodeId = agent.nodeId;
      known.agentEndpoint = agent.agentEndpoint;
      known.heardMs = this.#now();
      return { id: known.id, resumed: true };
    }
    if (this.#sessions.size >= this.limits.sessionsMax) {
      throw new RelightError(
        "conflict",
        `Cannot open a session: ${this.limits.sessionsMax} are open`,
      );
    }
    const owned = { ...agent, owner: by?.uri ?? null };
    return { id: this.#openSession(this.#newSessionId(), owned).id, resumed: false };
  }

  /** False when the session has ended: the agent must say hello again. */
  heartbeat(sessionId: string, readers: number): boolean {
    const session = this.#sessions.get(sessionId);
    if (session === undefined) return false;
    session.heardMs = this.#now();
    session.readers = readers;
    return true;
  }

  /** Everything the session published is withheld at once, also if the store does not answer. */
  async goodbye(sessionId: string, signal: AbortSignal): Promise<void> {
    const session = this.#sessions.end(sessionId);
    if (session !== undefined) await this.#withhold(session, { type: "withdrawn" }, signal);
  }

  #openSession(
    id: string,
    agent: { nodeId: string; agentEndpoint: string; owner: string | null },
  ): Session {
    const { nodeId, agentEndpoint, owner } = agent;
    const session = this.#sessions.open({ id, nodeId, agentEndpoint, owner, now: this.#now() });
    this.#sessionDeadlines.add(id, this.#standing.endOf(session));
    return session;
  }

  async #withhold(session: Session, word: Word, signal: AbortSignal): Promise<void> {
    const keys = [...session.sources.values()];
    for (const key of keys) this.#watchers.tell({ type: "removed", key });
    const writes = keys.map((key) => this.#withholdOne(session.id, key, word, signal));
    const failed = (await Promise.allSettled(writes)).find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
  }

  async #withholdOne(
    sessionId: string,
    key: SourceKey,
    word: Word,
    signal: AbortSignal,
  ): Promise<void> {
    try {
      await this.#records.tell(key, word, signal, (head) => head.sessionId === sessionId);
    } catch (error) {
      // Nobody vouches for the record any more, so its deadline marks it when the store answers.
      this.#records.retryLater(key);
      throw error;
    }
  }

  // Writing

  /**
   * Adds or replaces one record; durable when it resolves.
   * @param how `word` is the session's own count of what it says
   * @throws RelightError `conflict` when the session has ended, before or while the record was
   * written, or said something later already; `store_unavailable`; `role_denied` when the record or the session is somebody else's.
   */
  async publish(
    publication: Publication,
    body: Uint8Array,
    signal: AbortSignal,
    { by = null, word = 0 }: { readonly by?: Admitted | null; readonly word?: number } = {},
  ): Promise<void> {
    const key = keyOf(publication);
    // Before our session vouches for it: what is somebody else's must not fall with that.
    if (by !== null) {
      const present = await this.#store.get(key, signal);
      mustOwn(by, "source.publish", present?.head.publisher ?? null);
    }
    const session = this.#vouching(publication, by);
    if (session !== null && !hearWord(session, key, word)) throw overtaken(key);
    session?.sources.set(keyText(key), key);
    const isVouched = () => session === null || this.#sessions.get(session.id) === session;
    if (!(await this.#records.publish(publication, body, { by, isVouched }, signal)))
      throw sessionEnded(publication.sessionId ?? "");
  }

  #vouching(publication: Publication, by: Admitted | null): Session | null {
    const { sessionId } = publication;
    if (sessionId === null) return null;
    const session = this.#sessions.get(sessionId);
    if (session === undefined) throw sessionEnded(sessionId);
    mustOwn(by, "source.publish", session.owner);
    const { sourcesPerSessionMax } = this.limits;
    const isNew = !session.sources.has(keyText(publication));
    if (isNew && session.sources.size >= sourcesPerSessionMax) {
      throw new RelightError(
        "conflict",
        `Cannot publish: the session has ${session.sources.size} sources, at most ${sourcesPerSessionMax}`,
      );
    }
    return session;
  }

  /** Undefined when it was done; else why not. */
  async updateStatus(
    update: { key: SourceKey; status: SourceStatus; workerRank: number },
    signal: AbortSignal,
    by: Admitted | null = null,
  ): Promise<string | undefined> {
    let reason: string | undefined = "no such worker has published";
    await this.#records.tell(
      update.key,
      { type: "status", status: update.status },
      signal,
      (head, refusal) => {
        mustOwn(by, "source.update", head.publisher);
        reason = refusal ?? this.#refusal(head, update);
        return reason === undefined;
      },
    );
    return reason;
  }

  #refusal(
    head: SourceHead,
    update: { status: SourceStatus; workerRank: number },
  ): string | undefined {
    if (head.workerRank !== update.workerRank) {
      return `the worker has rank ${head.workerRank}, not ${update.workerRank}`;
    }
    const vouched = head.sessionId === null || this.#sessions.get(head.sessionId) !== undefined;
    return vouched || update.status === "stale"
      ? undefined
      : "its session has ended; publish again";
  }

  /** How many records of the session were taken back; those of others stay. */
  async withdraw(
    what: { sessionId: string; workerId: string; sourceId: string | null; word?: number },
    signal: AbortSignal,
    by: Admitted | null = null,
  ): Promise<number> {
    const session = this.#sessions.get(what.sessionId);
    if (session === undefined) throw sessionEnded(what.sessionId);
    mustOwn(by, "source.update", session.owner);
    const { workerId, sourceId, word = 0 } = what;
    const mine = [...session.sources.values()].filter((key) => key.workerId === workerId);
    // Also of a source that is not there: its publication may still be on its way.
    const named = sourceId === null ? mine : [{ sourceId, workerId }];
    const meant = new Set(named.filter((key) => hearWord(session, key, word)).map(keyText));
    const keys = mine.filter((key) => meant.has(keyText(key)));
    const told = keys.map((key) =>
      this.#records.tell(
        key,
        { type: "withdrawn" },
        signal,
        (head) => head.sessionId === session.id,
      ),
    );
    const done = await Promise.all(told);
    for (const key of keys) session.sources.delete(keyText(key));
    return done.filter(Boolean).length;
  }

  // Reading

  async read(key: SourceKey, signal: AbortSignal): Promise<(StoredWithBody & Listed) | undefined> {
    const stored = await this.#store.read(key, signal);
    return stored && { ...stored, ...this.#standing.listed(stored.head) };
  }

  async listSource(sourceId: string, signal: AbortSignal): Promise<readonly Listed[]> {
    const heads = await this.#store.ofSource(sourceId, signal);
    return heads.map((head) => this.#standing.listed(head));
  }

  async *listAll(signal: AbortSignal): AsyncIterable<readonly Listed[]> {
    for await (const heads of this.#store.all(signal)) {
      yield heads.map((head) => this.#standing.listed(head));
    }
  }

  /** Whether silence has lasted too long for a record to be offered as READY. */
  isFresh(listed: Listed): boolean {
    return this.#now() - listed.heardMs <= this.limits.heartbeatTimeoutMs;
  }

  /** Complete sources first, then those with the fewest readers, then in rotation. */
  find(
    sourceId: string,
    options: { readonly excludeWorkerId: string; readonly limit: number },
    signal: AbortSignal,
  ): Promise<readonly Found[]> {
    return this.#finder.find(sourceId, options, signal);
  }

  readersOf(head: SourceHead): number {
    return this.#standing.readersOf(head);
  }

  /** Everything that `find` may answer for an id. */
  offers(sourceId: string, signal: AbortSignal): AsyncIterable<readonly SourceHead[]> {
    return this.#finder.offers(sourceId, signal);
  }

  /** Tells of every change of what Find may answer, from now until the returned function is called. */
  watch(sourceIds: readonly string[], listener: Listener): () => void {
    return this.#watchers.add(sourceIds, listener);
  }

  putBoot(boot: Boot, signal: AbortSignal): Promise<void> {
    return this.#store.putBoot(boot, signal);
  }

  boots(limit: number, signal: AbortSignal): Promise<readonly Boot[]> {
    return this.#store.boots(limit, signal);
  }

  probe(signal: AbortSignal): Promise<void> {
    return this.#store.probe(signal);
  }

  // Time

  /**
   * Ends silent sessions, marks silent records stale and removes old ones: what is due, no more. To be
   * called several times a second; a longer pause than `stallMs` gives every session its grace anew.
   */
  async advance(signal: AbortSignal): Promise<Advanced> {
    const now = this.#now();
    // The heartbeats of a stall wait in the sockets: silence of its own making proves nothing.
    if (now - this.#advancedMs > this.limits.stallMs) this.#standing.listenFrom(now);
    this.#advancedMs = now;
    const sessions = await this.#advanceSessions(signal);
    const records = await this.#records.advance(signal);
    return { ...sessions, ...records, failure: sessions.failure ?? records.failure };
  }

  async #advanceSessions(
    signal: AbortSignal,
  ): Promise<{ sessionsLost: number; failure: RelightError | null }> {
    const lost: Session[] = [];
    const now = this.#now();
    for (
      let id = this.#sessionDeadlines.take(now);
      id !== undefined;
      id = this.#sessionDeadlines.take(now)
    ) {
      const session = this.#sessions.get(id);
      if (session === undefined) continue;
      const untilMs = this.#standing.endOf(session);
      if (now <= untilMs) this.#sessionDeadlines.add(id, untilMs);
      else lost.push(session);
    }
    for (const session of lost) this.#sessions.end(session.id);
    const word = { type: "session_lost" } as const;
    const done = await Promise.allSettled(
      lost.map((session) => this.#withhold(session, word, signal)),
    );
    const failed = done.find(({ status }) => status === "rejected");
    const failure = failed?.status === "rejected" ? asRelightError(failed.reason) : null;
    return { sessionsLost: lost.length, failure };
  }
}

function overtaken(key: SourceKey): RelightError {
  return new RelightError(
    "conflict",
    `Cannot publish "${keyText(key)}": the session has said something later about it`,
  );
}

function sessionEnded(sessionId: string): RelightError {
  return new RelightError(
    "conflict",
    `Cannot act for session "${sessionId}": it has ended, say hello again`,
  );
}
