// SPDX-License-Identifier: Apache-2.0
// The store in this process's memory: `relight dev`, tests and the simulator. Nothing survives the
// process. Rows of a source id are kept sorted by worker id, so that a page is a binary search.

import { RelightError } from "../errors.ts";
import {
  type Boot,
  type BootLimits,
  bootLimitsDefault,
  type Page,
  type Put,
  type PutDocument,
  type Shelf,
  type SourceHead,
  type SourceKey,
  type Store,
  type Stored,
  type StoredDocument,
  type StoredWithBody,
  shelfOf,
} from "./store.ts";

interface Shelves {
  readonly records: Map<string, StoredWithBody>;
  readonly rows: Readonly<Record<Shelf, string[]>>;
}

const batchMax = 500;

export class MemoryStore implements Store {
  readonly #sources = new Map<string, Shelves>();
  readonly #boots = new Map<string, Boot>();
  readonly #documents = new Map<string, StoredDocument>();
  readonly #limits: BootLimits;
  #bootBytes = 0;
  #revision = 0;
  #closed = false;

  constructor(limits: BootLimits = bootLimitsDefault) {
    this.#limits = limits;
  }

  async get(key: SourceKey, signal: AbortSignal): Promise<Stored | undefined> {
    return this.read(key, signal);
  }

  async read(key: SourceKey, signal: AbortSignal): Promise<StoredWithBody | undefined> {
    this.#check(signal);
    return this.#sources.get(key.sourceId)?.records.get(key.workerId);
  }

  async put(put: Put, signal: AbortSignal): Promise<boolean> {
    this.#check(signal);
    const { sourceId, workerId } = put.head;
    const shelves = this.#sources.get(sourceId) ?? emptyShelves();
    const before = shelves.records.get(workerId);
    if ((before?.revision ?? null) !== put.replaces) return false;
    const body = put.body === undefined ? before?.body : new Uint8Array(put.body);
    if (body === undefined) return false;
    const from = before === undefined ? null : shelfOf(before.head);
    moveRow(shelves, workerId, { from, to: shelfOf(put.head) });
    shelves.records.set(workerId, { head: put.head, body, revision: ++this.#revision });
    this.#sources.set(sourceId, shelves);
    return true;
  }

  async remove(key: SourceKey, revision: number, signal: AbortSignal): Promise<boolean> {
    this.#check(signal);
    const shelves = this.#sources.get(key.sourceId);
    const before = shelves?.records.get(key.workerId);
    if (shelves === undefined || before?.revision !== revision) return false;
    moveRow(shelves, key.workerId, { from: shelfOf(before.head), to: null });
    shelves.records.delete(key.workerId);
    if (shelves.records.size === 0) this.#sources.delete(key.sourceId);
    return true;
  }

  async ofSource(sourceId: string, signal: AbortSignal): Promise<readonly SourceHead[]> {
    this.#check(signal);
    return Array.from(this.#sources.get(sourceId)?.records.values() ?? [], ({ head }) => head);
  }

  async onShelf(
    at: { sourceId: string; shelf: Shelf } & Page,
    signal: AbortSignal,
  ): Promise<readonly SourceHead[]> {
    this.#check(signal);
    const shelves = this.#sources.get(at.sourceId);
    if (shelves === undefined) return [];
    const rows = shelves.rows[at.shelf];
    const first = firstAbove(rows, at.after);
    const page = rows.slice(first, first + at.limit);
    return page.flatMap((workerId) => shelves.records.get(workerId)?.head ?? []);
  }

  async *all(signal: AbortSignal): AsyncIterable<readonly SourceHead[]> {
    let batch: SourceHead[] = [];
    for (const shelves of this.#sources.values()) {
      for (const { head } of shelves.records.values()) {
        this.#check(signal);
        batch.push(head);
        if (batch.length < batchMax) continue;
        yield batch;
        batch = [];
      }
    }
    this.#check(signal);
    if (batch.length > 0) yield batch;
  }

  async putBoot(boot: Boot, signal: AbortSignal): Promise<void> {
    this.#check(signal);
    this.#dropBoot(boot.bootId);
    this.#boots.set(boot.bootId, { ...boot, record: new Uint8Array(boot.record) });
    this.#bootBytes += boot.record.byteLength;
    for (const oldest of this.#boots.keys()) {
      const { bootsMax, bootBytesMax } = this.#limits;
      if (this.#boots.size <= bootsMax && this.#bootBytes <= bootBytesMax) break;
      this.#dropBoot(oldest);
    }
  }

  async boots(limit: number, signal: AbortSignal): Promise<readonly Boot[]> {
    this.#check(signal);
    return Array.from(this.#boots.values()).slice(-limit).reverse();
  }

  async document(name: string, signal: AbortSignal): Promise<StoredDocument | undefined> {
    this.#check(signal);
    return this.#documents.get(name);
  }

  async putDocument(put: PutDocument, signal: AbortSignal): Promise<number | null> {
    this.#check(signal);
    const { name, bytes, replaces } = put;
    if ((this.#documents.get(name)?.revision ?? null) !== replaces) return null;
    const revision = ++this.#revision;
    this.#documents.set(name, { bytes: new Uint8Array(bytes), revision });
    return revision;
  }

  async documentNames(signal: AbortSignal): Promise<readonly string[]> {
    this.#check(signal);
    return [...this.#documents.keys()].sort();
  }

  async probe(signal: AbortSignal): Promise<void> {
    this.#check(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
  }

  #dropBoot(bootId: string): void {
    this.#bootBytes -= this.#boots.get(bootId)?.record.byteLength ?? 0;
    this.#boots.delete(bootId);
  }

  #check(signal: AbortSignal): void {
    if (signal.aborted) {
      throw new RelightError("cancelled", "Cannot use the store: the call was cancelled", {
        cause: signal.reason,
      });
    }
    if (this.#closed) throw new RelightError("store_unavailable", "Cannot use the store: closed");
  }
}

function emptyShelves(): Shelves {
  return { records: new Map(), rows: { complete: [], partial: [] } };
}

function moveRow(
  { rows }: Shelves,
  workerId: string,
  { from, to }: { readonly from: Shelf | null; readonly to: Shelf | null },
): void {
  if (from === to) return;
  if (from !== null) rows[from].splice(firstAbove(rows[from], workerId) - 1, 1);
  if (to !== null) rows[to].splice(firstAbove(rows[to], workerId), 0, workerId);
}

/** The index of the first row above `after` in an ascending list. */
function firstAbove(rows: readonly string[], after: string): number {
  let [low, high] = [0, rows.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((rows[middle] ?? "") > after) high = middle;
    else low = middle + 1;
  }
  return low;
}
