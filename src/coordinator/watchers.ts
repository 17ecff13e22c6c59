// SPDX-License-Identifier: Apache-2.0
// Who watches which source ids, and what each is told. Delivery is synchronous and must not throw;
// a listener that can not keep up ends its own watch.

import type { SourceHead, SourceKey } from "../store/store.ts";

export type SourceEvent =
  | { readonly type: "added" | "updated"; readonly head: SourceHead }
  | { readonly type: "removed"; readonly key: SourceKey };

export type Listener = (event: SourceEvent) => void;

export class Watchers {
  readonly #listeners = new Map<string, Set<Listener>>();

  /** Listens to each id until the returned function is called. */
  add(sourceIds: readonly string[], listener: Listener): () => void {
    for (const sourceId of sourceIds) {
      const set = this.#listeners.get(sourceId) ?? new Set();
      this.#listeners.set(sourceId, set.add(listener));
    }
    return () => {
      for (const sourceId of sourceIds) this.#remove(sourceId, listener);
    };
  }

  tell(event: SourceEvent): void {
    const { sourceId } = event.type === "removed" ? event.key : event.head;
    for (const listener of this.#listeners.get(sourceId) ?? []) listener(event);
  }

  #remove(sourceId: string, listener: Listener): void {
    const set = this.#listeners.get(sourceId);
    set?.delete(listener);
    if (set?.size === 0) this.#listeners.delete(sourceId);
  }
}
