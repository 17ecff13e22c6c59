// SPDX-License-Identifier: Apache-2.0
// Which sources a target is sent to: complete before partial, few readers before many, equals in
// rotation. It looks at a window of the shelf that begins one further with each call, so that neither
// a call's cost nor a source's load grows with the fleet.

import type { Shelf, SourceHead, Store } from "../store/store.ts";
import type { Standing } from "./standing.ts";

export interface Found {
  readonly head: SourceHead;
  readonly readers: number;
}

const cursorsMax = 10_000;
const pageMax = 500;

export class Finder {
  readonly #store: Store;
  readonly #standing: Standing;
  readonly #windowMax: number;
  /** Where the last window of a shelf began. */
  readonly #cursors = new Map<string, string>();

  constructor(store: Store, standing: Standing, windowMax: number) {
    this.#store = store;
    this.#standing = standing;
    this.#windowMax = windowMax;
  }

  async find(
    sourceId: string,
    options: { readonly excludeWorkerId: string; readonly limit: number },
    signal: AbortSignal,
  ): Promise<readonly Found[]> {
    const complete = await this.#candidates({ sourceId, shelf: "complete" }, options, signal);
    if (complete.length >= options.limit) return complete.slice(0, options.limit);
    const partial = await this.#candidates({ sourceId, shelf: "partial" }, options, signal);
    return [...complete, ...partial].slice(0, options.limit);
  }

  /** Everything that `find` may answer for an id. */
  async *offers(sourceId: string, signal: AbortSignal): AsyncIterable<readonly SourceHead[]> {
    for (const shelf of ["complete", "partial"] as const) {
      for (let after: string | undefined = ""; after !== undefined; ) {
        const at = { sourceId, shelf, after, limit: pageMax };
        const page: readonly SourceHead[] = await this.#store.onShelf(at, signal);
        yield page.filter((head) => this.#standing.isOffered(head));
        after = page.length < pageMax ? undefined : page.at(-1)?.workerId;
      }
    }
  }

  async #candidates(
    at: { readonly sourceId: string; readonly shelf: Shelf },
    options: { readonly excludeWorkerId: string },
    signal: AbortSignal,
  ): Promise<readonly Found[]> {
    const heads = await this.#window(at, signal);
    const offered = heads.filter(
      (head) => head.workerId !== options.excludeWorkerId && this.#standing.isOffered(head),
    );
    const found = offered.map((head) => ({ head, readers: this.#standing.readersOf(head) }));
    return found.sort((a, b) => a.readers - b.readers);
  }

  async #window(
    at: { readonly sourceId: string; readonly shelf: Shelf },
    signal: AbortSignal,
  ): Promise<readonly SourceHead[]> {
    const limit = this.#windowMax;
    const cursor = `${at.sourceId}/${at.shelf}`;
    const after = this.#cursors.get(cursor) ?? "";
    const page = await this.#store.onShelf({ ...at, after, limit }, signal);
    if (after === "" || page.length === limit) return this.#turned(cursor, page);
    const wrapped = await this.#store.onShelf({ ...at, after: "", limit }, signal);
    const seen = new Set(page.map(({ workerId }) => workerId));
    const rest = wrapped.filter(({ workerId }) => !seen.has(workerId));
    return this.#turned(cursor, [...page, ...rest].slice(0, limit));
  }

  #turned(cursor: string, heads: readonly SourceHead[]): readonly SourceHead[] {
    this.#cursors.delete(cursor);
    if (heads[0] !== undefined) this.#cursors.set(cursor, heads[0].workerId);
    for (const oldest of this.#cursors.keys()) {
      if (this.#cursors.size <= cursorsMax) break;
      this.#cursors.delete(oldest);
    }
    return heads;
  }
}
