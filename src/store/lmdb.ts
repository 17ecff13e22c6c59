// SPDX-License-Identifier: Apache-2.0
// The embedded store: one LMDB directory, one process. Reads are synchronous looks into mapped memory,
// writes go to LMDB's own thread in batches, so that many publishers share one flush. Heads, bodies and
// shelf rows of a record change in one transaction, on condition that the head is at the revision read.

import { execFile } from "node:child_process";
import { mkdirSync, statSync } from "node:fs";
import { extname, join } from "node:path";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type Database, open, type RootDatabase } from "lmdb";
import { RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { claimNodeLock, type NodeLock } from "../platform/node-lock.ts";
import { openFailure, useFailure } from "./lmdb-errors.ts";
import {
  corrupt,
  decodeBoot,
  decodeBootRow,
  decodeHead,
  encodeBoot,
  encodeHead,
  formatVersion,
} from "./lmdb-form.ts";
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

// With event-turn batching a failed commit rejects a promise that nobody can reach, and a full disk
// ends the process. Without it the same writes still share transactions under load.
const options = { maxDbs: 16, encoding: "msgpack", eventTurnBatching: false } as const;

type RecordKey = [sourceId: string, workerId: string];
type ShelfKey = [sourceId: string, shelf: Shelf, workerId: string];

const batchMax = 500;
const lockMsMax = 2_000;
const checkMsMax = 120_000;
const closeMsMax = 2_000;
// Above every character that a name may hold, so that [id, top] is above every [id, name].
const top = "\u{10ffff}\u{10ffff}";

/**
 * Opens or creates the directory; fails rather than serve a store it can not vouch for.
 * @throws RelightError `store_corrupt`, `store_newer`, `lock_timeout` when another process has it, or
 * what the disk answered.
 */
export async function openLmdbStore(
  folder: string,
  limits: BootLimits = bootLimitsDefault,
): Promise<Store> {
  const action = `open the store "${folder}"`;
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw openFailure(error, action);
  }
  const signal = AbortSignal.timeout(lockMsMax);
  const lock = await claimNodeLock(join(folder, "relight.lock"), { clock: systemClock, signal });
  try {
    await check(folder);
    const root = open<unknown, string>({ path: folder, ...options });
    const store = new LmdbStore(root, lock, limits);
    await store.checkFormat();
    store.recallBoots();
    return store;
  } catch (error) {
    lock[Symbol.dispose]();
    throw openFailure(error, action);
  }
}

/** Lets another process read everything first (lmdb-check.ts). */
async function check(folder: string): Promise<void> {
  const stat = statSync(join(folder, "data.mdb"), { throwIfNoEntry: false });
  if (stat === undefined || stat.size === 0) return;
  const self = fileURLToPath(import.meta.url);
  const program = join(import.meta.dirname, `lmdb-check${extname(self)}`);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  execFile(process.execPath, [program, folder], { timeout: checkMsMax }, (error) => {
    if (error === null) resolve();
    else reject(corrupt(`"${folder}"`, error));
  });
  await promise;
}

class LmdbStore implements Store {
  readonly #root: RootDatabase<unknown, string>;
  readonly #heads: Database<unknown, RecordKey>;
  readonly #bodies: Database<Buffer, RecordKey>;
  readonly #shelves: Database<unknown, ShelfKey>;
  readonly #boots: Database<unknown, number>;
  readonly #bootRows: Database<unknown, string>;
  readonly #documents: Database<Buffer, string>;
  readonly #meta: Database<unknown, string>;
  readonly #lock: NodeLock;
  readonly #limits: BootLimits;
  /** Oldest first. */
  readonly #bootSizes = new Map<string, { readonly sequence: number; readonly bytes: number }>();
  #bootBytes = 0;
  #bootSequence = 0;
  // Revisions are never used twice, also not for a record that was removed and came back.
  #revision = Date.now() * 1_000;
  #closed: Promise<void> | undefined;

  constructor(root: RootDatabase<unknown, string>, lock: NodeLock, limits: BootLimits) {
    this.#root = root;
    this.#lock = lock;
    this.#limits = limits;
    this.#heads = root.openDB({ name: "heads", encoding: "msgpack", useVersions: true });
    this.#bodies = root.openDB({ name: "bodies", encoding: "binary" });
    this.#shelves = root.openDB({ name: "shelves", encoding: "msgpack" });
    this.#boots = root.openDB({ name: "boots", encoding: "msgpack" });
    this.#bootRows = root.openDB({ name: "boot_rows", encoding: "msgpack" });
    this.#documents = root.openDB({ name: "documents", encoding: "binary", useVersions: true });
    this.#meta = root.openDB({ name: "meta", encoding: "msgpack" });
  }

  async checkFormat(): Promise<void> {
    const format = this.#meta.get("format");
    if (format === formatVersion) return;
    if (typeof format === "number" && format > formatVersion) {
      throw new RelightError(
        "store_newer",
        `Cannot open the store: its format is ${format}, this version reads ${formatVersion}`,
      );
    }
    const isEmpty = this.#heads.getKeysCount({ limit: 1 }) === 0;
    if (format !== undefined || !isEmpty) throw corrupt("the format number");
    await this.#meta.put("format", formatVersion);
    await this.#root.flushed;
  }

  recallBoots(): void {
    const rows = Array.from(this.#bootRows.getRange(), ({ key, value }) => ({
      bootId: key,
      ...decodeBootRow(value),
    }));
    rows.sort((a, b) => a.sequence - b.sequence);
    for (const { bootId, sequence, bytes } of rows) this.#rememberBoot(bootId, { sequence, bytes });
  }

  async get(key: SourceKey, signal: AbortSignal): Promise<Stored | undefined> {
    return this.#look(signal, () => this.#get(key));
  }

  async read(key: SourceKey, signal: AbortSignal): Promise<StoredWithBody | undefined> {
    return this.#look(signal, () => {
      const stored = this.#get(key);
      if (stored === undefined) return undefined;
      const body = this.#bodies.get(recordKey(key));
      if (body === undefined) throw corrupt(`the body of ${key.sourceId}/${key.workerId}`);
      return { ...stored, body };
    });
  }

  async put(put: Put, signal: AbortSignal): Promise<boolean> {
    const before = this.#look(signal, () => this.#get(put.head));
    if ((before?.revision ?? null) !== put.replaces) return false;
    if (before === undefined && put.body === undefined) return false;
    const key = recordKey(put.head);
    const write = (): void => {
      part(this.#heads.put(key, encodeHead(put.head), ++this.#revision));
      if (put.body !== undefined) part(this.#bodies.put(key, Buffer.from(put.body)));
      this.#moveRow(
        put.head,
        before === undefined ? null : shelfOf(before.head),
        shelfOf(put.head),
      );
    };
    return this.#writeIf(key, put.replaces, write, { when: put.when, signal });
  }

  async remove(key: SourceKey, revision: number, signal: AbortSignal): Promise<boolean> {
    const before = this.#look(signal, () => this.#get(key));
    if (before?.revision !== revision) return false;
    const write = (): void => {
      part(this.#heads.remove(recordKey(key)));
      part(this.#bodies.remove(recordKey(key)));
      this.#moveRow(key, shelfOf(before.head), null);
    };
    return this.#writeIf(recordKey(key), revision, write, { when: "committed", signal });
  }

  async ofSource(sourceId: string, signal: AbortSignal): Promise<readonly SourceHead[]> {
    const range = {
      start: recordKey({ sourceId, workerId: "" }),
      end: recordKey({ sourceId, workerId: top }),
    };
    return this.#look(signal, () =>
      Array.from(this.#heads.getRange(range), ({ key, value }) =>
        decodeHead(sourceKey(key), value),
      ),
    );
  }

  async onShelf(
    at: { sourceId: string; shelf: Shelf } & Page,
    signal: AbortSignal,
  ): Promise<readonly SourceHead[]> {
    const { sourceId, shelf, after, limit } = at;
    const start: ShelfKey = [sourceId, shelf, after];
    const end: ShelfKey = [sourceId, shelf, top];
    return this.#look(signal, () => {
      const rows = this.#shelves.getKeys({ start, end, limit, exclusiveStart: true });
      return Array.from(rows).flatMap(
        ([, , workerId]) => this.#get({ sourceId, workerId })?.head ?? [],
      );
    });
  }

  async *all(signal: AbortSignal): AsyncIterable<readonly SourceHead[]> {
    for (let after: RecordKey | undefined; ; ) {
      const start = after === undefined ? {} : { start: after, exclusiveStart: true };
      const batch = this.#look(signal, () =>
        Array.from(this.#heads.getRange({ ...start, limit: batchMax }), ({ key, value }) =>
          decodeHead(sourceKey(key), value),
        ),
      );
      if (batch.length > 0) yield batch;
      const last = batch.at(-1);
      if (last === undefined || batch.length < batchMax) return;
      after = recordKey(last);
      // A walk over a large store must not hold up the calls of others.
      await nextTurn();
    }
  }

  async putBoot(boot: Boot, signal: AbortSignal): Promise<void> {
    this.#check(signal);
    const sequence = ++this.#bootSequence;
    const bytes = boot.record.byteLength;
    const dropped = [this.#forgetBoot(boot.bootId)];
    this.#rememberBoot(boot.bootId, { sequence, bytes });
    for (const oldest of this.#bootSizes.keys()) {
      const { bootsMax, bootBytesMax } = this.#limits;
      if (this.#bootSizes.size <= bootsMax && this.#bootBytes <= bootBytesMax) break;
      dropped.push(this.#forgetBoot(oldest));
    }
    const written = this.#root.batch(() => {
      part(this.#boots.put(sequence, encodeBoot({ ...boot, record: Buffer.from(boot.record) })));
      part(this.#bootRows.put(boot.bootId, [sequence, bytes]));
      for (const { bootId, sequence: old } of dropped.flatMap((each) => each ?? [])) {
        part(this.#boots.remove(old));
        if (!this.#bootSizes.has(bootId)) part(this.#bootRows.remove(bootId));
      }
    });
    await this.#settle(written, { when: "flushed", signal });
  }

  async boots(limit: number, signal: AbortSignal): Promise<readonly Boot[]> {
    return this.#look(signal, () =>
      Array.from(this.#boots.getRange({ reverse: true, limit }), ({ value }) => decodeBoot(value)),
    );
  }

  async document(name: string, signal: AbortSignal): Promise<StoredDocument | undefined> {
    return this.#look(signal, () => {
      const entry = this.#documents.getEntry(name);
      if (entry === undefined) return undefined;
      return { bytes: new Uint8Array(entry.value), revision: entry.version ?? 0 };
    });
  }

  async putDocument(put: PutDocument, signal: AbortSignal): Promise<number | null> {
    this.#check(signal);
    const { name, bytes, replaces } = put;
    const revision = ++this.#revision;
    const value = Buffer.from(bytes);
    const write = (): void => part(this.#documents.put(name, value, revision));
    const written =
      replaces === null
        ? this.#documents.ifNoExists(name, write)
        : this.#documents.ifVersion(name, replaces, write);
    return (await this.#settle(written, { when: "committed", signal })) ? revision : null;
  }

  async documentNames(signal: AbortSignal): Promise<readonly string[]> {
    return this.#look(signal, () => Array.from(this.#documents.getKeys()));
  }

  async probe(signal: AbortSignal): Promise<void> {
    const format = this.#look(signal, () => this.#meta.get("format"));
    if (format !== formatVersion) throw corrupt("the format number");
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const waiting = new AbortController();
    const { signal } = waiting;
    try {
      // After a commit that failed LMDB waits for its flush for ever.
      await Promise.race([this.#root.close(), sleep(closeMsMax, undefined, { signal })]);
    } finally {
      waiting.abort();
      this.#lock[Symbol.dispose]();
    }
  }

  #get(key: SourceKey): Stored | undefined {
    const entry = this.#heads.getEntry(recordKey(key));
    if (entry === undefined) return undefined;
    return { head: decodeHead(key, entry.value), revision: entry.version ?? 0 };
  }

  #moveRow({ sourceId, workerId }: SourceKey, from: Shelf | null, to: Shelf | null): void {
    if (from === to) return;
    if (from !== null) part(this.#shelves.remove([sourceId, from, workerId]));
    if (to !== null) part(this.#shelves.put([sourceId, to, workerId], null));
  }

  #writeIf(
    key: RecordKey,
    revision: number | null,
    write: () => void,
    wait: { when: Put["when"]; signal: AbortSignal },
  ): Promise<boolean> {
    const written =
      revision === null
        ? this.#heads.ifNoExists(key, write)
        : this.#heads.ifVersion(key, revision, write);
    return this.#settle(written, wait);
  }

  /** LMDB can not take a queued write back: a cancelled call stops waiting, the write goes on. */
  async #settle(
    written: Promise<boolean>,
    { when, signal }: { when: Put["when"]; signal: AbortSignal },
  ): Promise<boolean> {
    const { promise: aborted, reject } = Promise.withResolvers<never>();
    const abort = (): void => reject(cancelled(signal));
    signal.addEventListener("abort", abort, { once: true });
    try {
      const done = await Promise.race([written, aborted]);
      if (done && when === "flushed") await Promise.race([this.#root.flushed, aborted]);
      return done;
    } catch (error) {
      throw useFailure(await commitErrorOf(error), "write to the store");
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  #look<Result>(signal: AbortSignal, act: () => Result): Result {
    this.#check(signal);
    try {
      return act();
    } catch (error) {
      throw useFailure(error, "read the store");
    }
  }

  #check(signal: AbortSignal): void {
    if (signal.aborted) throw cancelled(signal);
    if (this.#closed !== undefined) {
      throw new RelightError("store_unavailable", "Cannot use the store: it is closed");
    }
  }

  #rememberBoot(bootId: string, row: { readonly sequence: number; readonly bytes: number }): void {
    this.#bootSizes.set(bootId, row);
    this.#bootBytes += row.bytes;
    this.#bootSequence = Math.max(this.#bootSequence, row.sequence);
  }

  #forgetBoot(bootId: string): { bootId: string; sequence: number } | undefined {
    const row = this.#bootSizes.get(bootId);
    if (row === undefined) return undefined;
    this.#bootSizes.delete(bootId);
    this.#bootBytes -= row.bytes;
    return { bootId, sequence: row.sequence };
  }
}

/** A write within a transaction: the transaction's own promise carries the failure. */
function part(written: Promise<boolean>): void {
  written.catch(() => {});
}

/** LMDB puts the reason of a failed commit into a promise of its own. */
async function commitErrorOf(error: unknown): Promise<unknown> {
  if (!(error instanceof Error && "commitError" in error)) return error;
  return Promise.resolve(error.commitError).then(
    () => error,
    (reason: unknown) => reason,
  );
}

function recordKey({ sourceId, workerId }: SourceKey): RecordKey {
  return [sourceId, workerId];
}

function sourceKey([sourceId, workerId]: RecordKey): SourceKey {
  return { sourceId, workerId };
}

function cancelled({ reason }: AbortSignal): RelightError {
  if (reason instanceof RelightError) return reason;
  return new RelightError("cancelled", "Cannot use the store: the call was cancelled", {
    cause: reason,
  });
}
