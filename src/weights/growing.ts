// SPDX-License-Identifier: Apache-2.0
// The tensors that a loading target has verified so far, for those who read from it meanwhile.

import { packHave } from "./source.ts";

export class Growing {
  readonly #tensors = new Set<number>();
  #isComplete: boolean;
  #changed = Promise.withResolvers<void>();

  /** @param isComplete true for weights that an engine has published whole */
  constructor(isComplete: boolean) {
    this.#isComplete = isComplete;
  }

  get isComplete(): boolean {
    return this.#isComplete;
  }

  get count(): number {
    return this.#tensors.size;
  }

  /** Resolves at the next change. */
  get changed(): Promise<void> {
    return this.#changed.promise;
  }

  add(tensors: readonly number[]): void {
    for (const tensor of tensors) this.#tensors.add(tensor);
    this.#wake();
  }

  complete(): void {
    this.#isComplete = true;
    this.#wake();
  }

  /** Nothing more comes: whoever waits looks again, and finds that it is gone. */
  end(): void {
    this.#wake();
  }

  packed(): { readonly isComplete: boolean; readonly tensors: string } {
    const tensors = this.#isComplete ? "" : packHave(this.#tensors);
    return { isComplete: this.#isComplete, tensors };
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
  }
}
