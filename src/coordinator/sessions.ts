// SPDX-License-Identifier: Apache-2.0
// The sessions of agents: who is connected, when each was last heard, and which records each vouches
// for. A session that is not in this table vouches for nothing, whatever the store says: that is what
// makes a loss take effect at once, before its records are written.

import type { SourceKey } from "../store/store.ts";

export interface Session {
  readonly id: string;
  /** The SPIFFE id of whoever opened it; null where nobody had to prove anything. */
  readonly owner: string | null;
  nodeId: string;
  agentEndpoint: string;
  readonly sources: Map<string, SourceKey>;
  /** The number of the last word heard about each source, oldest first. */
  readonly words: Map<string, number>;
  heardMs: number;
  readers: number;
}

export class Sessions {
  readonly #sessions = new Map<string, Session>();

  get size(): number {
    return this.#sessions.size;
  }

  open(at: Pick<Session, "id" | "owner" | "nodeId" | "agentEndpoint"> & { now: number }): Session {
    const { id, owner, nodeId, agentEndpoint } = at;
    const session = {
      id,
      owner,
      nodeId,
      agentEndpoint,
      sources: new Map(),
      words: new Map(),
      heardMs: at.now,
      readers: 0,
    };
    this.#sessions.set(id, session);
    return session;
  }

  get(id: string): Session | undefined {
    return this.#sessions.get(id);
  }

  /** Takes it out; undefined when it had ended before. */
  end(id: string): Session | undefined {
    const session = this.#sessions.get(id);
    this.#sessions.delete(id);
    return session;
  }
}

/** Of sources that were taken back, so many are remembered in each session. */
const wordsMax = 8_192;

/**
 * False for a word that is older than one heard before about the same source: it was late on its way, and
 * must not undo the later one. The same word twice is harmless; 0 is not counted.
 */
export function hearWord(session: Session, key: SourceKey, word: number): boolean {
  if (word === 0) return true;
  const text = keyText(key);
  if (word < (session.words.get(text) ?? 0)) return false;
  session.words.delete(text);
  session.words.set(text, word);
  const [oldest] = session.words.keys();
  if (session.words.size > wordsMax && oldest !== undefined) session.words.delete(oldest);
  return true;
}

export function keyText(key: SourceKey): string {
  return `${key.sourceId}/${key.workerId}`;
}
