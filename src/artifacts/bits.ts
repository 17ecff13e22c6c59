// SPDX-License-Identifier: Apache-2.0
// A set of small numbers as bits: what a pull scans tens of thousands of pieces with, once per request.

export class Bits {
  readonly size: number;
  readonly words: Int32Array;

  constructor(size: number) {
    this.size = size;
    this.words = new Int32Array(Math.ceil(size / 32));
  }

  has(number: number): boolean {
    return ((this.words[number >>> 5] ?? 0) & (1 << (number & 31))) !== 0;
  }

  add(number: number): void {
    this.words[number >>> 5] = (this.words[number >>> 5] ?? 0) | (1 << (number & 31));
  }

  remove(number: number): void {
    this.words[number >>> 5] = (this.words[number >>> 5] ?? 0) & ~(1 << (number & 31));
  }

  addAll(): void {
    for (let number = 0; number < this.size; number++) this.add(number);
  }

  count(): number {
    let count = 0;
    for (const word of this.words) count += ones(word);
    return count;
  }

  /** Members of both. */
  and(other: Bits): Bits {
    const result = new Bits(this.size);
    for (let at = 0; at < this.words.length; at++) {
      result.words[at] = (this.words[at] ?? 0) & (other.words[at] ?? 0);
    }
    return result;
  }

  /** Whether any member is in both; allocates nothing, because a pull asks it for each of its sources. */
  meets(other: Bits): boolean {
    for (let at = 0; at < this.words.length; at++) {
      if (((this.words[at] ?? 0) & (other.words[at] ?? 0)) !== 0) return true;
    }
    return false;
  }

  /** Members that `other` lacks. */
  without(other: Bits): Bits {
    const result = new Bits(this.size);
    for (let at = 0; at < this.words.length; at++) {
      result.words[at] = (this.words[at] ?? 0) & ~(other.words[at] ?? 0);
    }
    return result;
  }

  get isEmpty(): boolean {
    for (let at = 0; at < this.words.length; at++) if (this.words[at] !== 0) return false;
    return true;
  }

  /** Members from `start` upwards, then from 0 up to it. */
  *from(start: number): Generator<number> {
    yield* this.#between(start, this.size);
    yield* this.#between(0, start);
  }

  *#between(low: number, high: number): Generator<number> {
    for (let number = low; number < high; ) {
      // Empty words are skipped whole: towards the end of a pull nearly all are.
      if ((number & 31) === 0 && this.words[number >>> 5] === 0) {
        number += 32;
        continue;
      }
      if (this.has(number)) yield number;
      number++;
    }
  }
}

function ones(word: number): number {
  let bits = word - ((word >>> 1) & 0x5555_5555);
  bits = (bits & 0x3333_3333) + ((bits >>> 2) & 0x3333_3333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}
