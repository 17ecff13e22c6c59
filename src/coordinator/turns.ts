// SPDX-License-Identifier: Apache-2.0
// One at a time per key, in order of arrival, so that two words about one record are decided in the
// order in which they came. Different keys do not wait for each other.

export class Turns {
  readonly #last = new Map<string, Promise<void>>();

  /** Runs `act` after everything taken earlier for `key` has settled. Rejects as `act` does. */
  take<Result>(key: string, act: () => Promise<Result>): Promise<Result> {
    const before = this.#last.get(key);
    const result = before === undefined ? act() : before.then(act);
    const settled = result.then(nothing, nothing);
    this.#last.set(key, settled);
    void settled.then(() => {
      if (this.#last.get(key) === settled) this.#last.delete(key);
    });
    return result;
  }
}

function nothing(): void {}
