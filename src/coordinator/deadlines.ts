// SPDX-License-Identifier: Apache-2.0
// A queue of deadlines: a binary heap, earliest first. A heartbeat does not touch it: the owner looks
// at the record when its entry comes up and files it again when it was refreshed, so that the cost of
// a fleet's heartbeats does not include the queue. Filing a key earlier than it stands outdates its
// older entry, which is dropped when it comes up.

interface Entry {
  readonly key: string;
  readonly atMs: number;
}

export class Deadlines {
  readonly #heap: Entry[] = [];
  readonly #filed = new Map<string, number>();

  /** How many keys have a deadline. */
  get size(): number {
    return this.#filed.size;
  }

  /** Files `key` at `atMs`, unless it stands at that time or earlier already. */
  add(key: string, atMs: number): void {
    if ((this.#filed.get(key) ?? Number.POSITIVE_INFINITY) <= atMs) return;
    this.#filed.set(key, atMs);
    this.#heap.push({ key, atMs });
    this.#rise(this.#heap.length - 1);
  }

  /** The earliest key whose time is before `now`, taken out; undefined when none is. */
  take(now: number): string | undefined {
    for (;;) {
      const first = this.#heap[0];
      if (first === undefined || first.atMs >= now) return undefined;
      this.#dropFirst();
      if (this.#filed.get(first.key) !== first.atMs) continue;
      this.#filed.delete(first.key);
      return first.key;
    }
  }

  #dropFirst(): void {
    const last = this.#heap.pop();
    if (last === undefined || this.#heap.length === 0) return;
    this.#heap[0] = last;
    this.#sink(0);
  }

  #rise(from: number): void {
    let at = from;
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      if (this.#at(parent) <= this.#at(at)) return;
      this.#swap(at, parent);
      at = parent;
    }
  }

  #sink(from: number): void {
    let at = from;
    for (;;) {
      const left = 2 * at + 1;
      const child = this.#at(left + 1) < this.#at(left) ? left + 1 : left;
      if (this.#at(at) <= this.#at(child)) return;
      this.#swap(at, child);
      at = child;
    }
  }

  #at(index: number): number {
    return this.#heap[index]?.atMs ?? Number.POSITIVE_INFINITY;
  }

  #swap(a: number, b: number): void {
    const [first, second] = [this.#heap[a], this.#heap[b]];
    if (first === undefined || second === undefined) return;
    this.#heap[a] = second;
    this.#heap[b] = first;
  }
}
