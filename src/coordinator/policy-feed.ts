// SPDX-License-Identifier: Apache-2.0
// The fleet's policy on its way to every connected agent. The coordinator only carries it: an agent takes
// nothing that the roots it follows did not sign.

export class PolicyFeed {
  readonly #listeners = new Set<(envelope: Buffer) => void>();
  #current: Buffer | null = null;

  /**
   * Tells everybody, when it is another one than before. Null: there is none any more, which says nothing.
   * @returns whether it was told
   */
  set(envelope: Buffer | null): boolean {
    if (envelope === null || this.#current?.equals(envelope) === true) return false;
    this.#current = envelope;
    for (const listener of this.#listeners) listener(envelope);
    return true;
  }

  /** Hears the present one at once and each later one. @returns what ends it. */
  follow(listener: (envelope: Buffer) => void): () => void {
    if (this.#current !== null) listener(this.#current);
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
