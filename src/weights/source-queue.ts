// SPDX-License-Identifier: Apache-2.0
// Whom to ask next: the sources that were found, then those that busy ones have named, each once. A
// source that admits no more readers names those that read from it, for they have what it has.

import type { RelightError } from "../errors.ts";
import type { WeightSource } from "./source.ts";

const namedMax = 64;

export class SourceQueue implements Disposable {
  readonly #waiting: WeightSource[];
  readonly #seen: Set<string>;
  readonly #open: ((address: string) => (WeightSource & Disposable) | null) | null;
  readonly #opened: Disposable[] = [];

  constructor(
    sources: readonly WeightSource[],
    open: ((address: string) => (WeightSource & Disposable) | null) | null,
    own: string | null,
  ) {
    this.#waiting = [...sources];
    this.#seen = new Set(sources.map(({ name }) => name));
    if (own !== null) this.#seen.add(own);
    this.#open = open;
  }

  next(): WeightSource | null {
    return this.#waiting.shift() ?? null;
  }

  /** Takes up whom a busy source has named. */
  hear({ code, details }: RelightError): void {
    const readers = details["readers"];
    if (code !== "source_busy" || typeof readers !== "string") return;
    for (const address of readers.split("\n")) {
      if (address === "" || this.#seen.has(address) || this.#opened.length >= namedMax) continue;
      this.#seen.add(address);
      const source = this.#open?.(address) ?? null;
      if (source === null) continue;
      this.#opened.push(source);
      this.#waiting.push(source);
    }
  }

  [Symbol.dispose](): void {
    for (const source of this.#opened.splice(0)) source[Symbol.dispose]();
  }
}
