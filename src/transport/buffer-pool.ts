// SPDX-License-Identifier: Apache-2.0
// Buffers that are used again. Allocating for each read makes V8 collect its whole heap every few
// megabytes (docs/adr: Node 24 spends four times the CPU on it), so the byte path never does.

export class BufferPool {
  readonly bufferBytes: number;
  readonly #keptMax: number;
  readonly #free: Buffer[] = [];

  /** Keeps at most `keptMax` unused buffers; more are made when needed and then let go. */
  constructor(options: { bufferBytes: number; keptMax: number }) {
    this.bufferBytes = options.bufferBytes;
    this.#keptMax = options.keptMax;
  }

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(this.bufferBytes);
  }

  /** Only what `take` gave, and once. */
  give(buffer: Buffer): void {
    if (this.#free.length < this.#keptMax) this.#free.push(buffer);
  }
}
