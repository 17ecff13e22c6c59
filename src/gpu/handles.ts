// SPDX-License-Identifier: Apache-2.0
// Numbers that stand for what a driver opened. A number is never given twice, so that one which was
// closed is recognised instead of naming something else.

import { RelightError } from "../errors.ts";
import type { Handle } from "./driver.ts";

interface Owned {
  readonly kind: string;
  /** The handle that closes this one with it; `null` for the outermost. */
  readonly owner: number | null;
}

export class HandleTable<Entry extends Owned> {
  readonly #entries = new Map<number, Entry>();
  #next = 1;

  add<Kind extends Entry["kind"]>(entry: Entry & { readonly kind: Kind }): Handle<Kind> {
    const handle = this.#next++;
    this.#entries.set(handle, entry);
    return handle as Handle<Kind>;
  }

  /** @throws handle_closed */
  get<Kind extends Entry["kind"]>(
    handle: Handle<Kind>,
    kind: Kind,
  ): Extract<Entry, { kind: Kind }> {
    const entry = this.#entries.get(handle);
    if (entry === undefined || entry.kind !== kind) {
      throw new RelightError(
        "handle_closed",
        `Cannot use ${kind} ${handle}: it is ${entry === undefined ? "closed" : `a ${entry.kind}`}`,
        { details: { handle, kind } },
      );
    }
    return entry as Extract<Entry, { kind: Kind }>;
  }

  peek(handle: number): Entry | undefined {
    return this.#entries.get(handle);
  }

  /** Removes the handle and everything it owns; the innermost comes first. */
  take(handle: number): Entry[] {
    const entry = this.#entries.get(handle);
    if (entry === undefined) return [];
    const owned = [...this.#entries.entries()]
      .filter(([, other]) => other.owner === handle)
      .flatMap(([inner]) => this.take(inner));
    this.#entries.delete(handle);
    return [...owned, entry];
  }

  all(): number[] {
    return [...this.#entries.keys()];
  }
}
