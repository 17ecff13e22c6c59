// SPDX-License-Identifier: Apache-2.0
// One thing after the other, in the order in which they were asked for.

export class Turns {
  #last: Promise<unknown> = Promise.resolve();

  /** Runs `act` when everything asked for before is over, well or not. */
  take<Result>(act: () => Promise<Result>): Promise<Result> {
    const turn = this.#last.then(act, act);
    this.#last = turn.catch(() => undefined);
    return turn;
  }
}
