// SPDX-License-Identifier: Apache-2.0
// Commands between the one who decides and the one who carries out: a queue with one reader.

import { assert, type RelightError } from "../errors.ts";
import type { Command } from "./session.ts";

export class CommandQueue implements AsyncIterable<Command> {
  readonly #waiting: Command[] = [];
  #wake: (() => void) | null = null;
  #isEnded = false;
  #failure: RelightError | null = null;
  #isRead = false;

  push(command: Command): void {
    if (this.#isEnded) return;
    this.#waiting.push(command);
    this.#wake?.();
  }

  /** What waits is still read. */
  end(): void {
    this.#isEnded = true;
    this.#wake?.();
  }

  /** What waits is still read, then the reader is told. */
  fail(error: RelightError): void {
    this.#failure = error;
    this.end();
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Command> {
    assert(!this.#isRead, "commands of a session have one reader");
    this.#isRead = true;
    for (;;) {
      const command = this.#waiting.shift();
      if (command !== undefined) yield command;
      else if (this.#failure !== null) throw this.#failure;
      else if (this.#isEnded) return;
      else {
        const { promise, resolve } = Promise.withResolvers<void>();
        this.#wake = resolve;
        await promise;
        this.#wake = null;
      }
    }
  }
}
