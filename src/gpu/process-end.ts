// SPDX-License-Identifier: Apache-2.0
// Notices that a process of this machine has ended, also one that is not our child, within a millisecond
// and for certain: a pidfd names one process, never the next one of the same number.

import { libc, watch } from "./libc.ts";

export class ProcessWatch implements Disposable {
  #close: () => void = () => {};

  /** Calls once; at once when there is no such process. */
  constructor(pid: number, onEnd: () => void) {
    const system = libc();
    const file = system.openProcess(pid);
    if (file < 0) {
      queueMicrotask(onEnd);
      return;
    }
    const poll = watch(file, { readable: true, writable: false }, () => {
      this.#close();
      onEnd();
    });
    this.#close = () => {
      this.#close = () => {};
      poll.close();
      system.close(file);
    };
  }

  [Symbol.dispose](): void {
    this.#close();
  }
}
