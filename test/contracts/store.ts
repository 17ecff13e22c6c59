// SPDX-License-Identifier: Apache-2.0
// What every store promises (src/store/store.ts). Each implementation's test calls this with its own
// way to open an empty store.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { RelightError } from "../../src/errors.ts";
import type { BootLimits, Put, SourceHead, Store } from "../../src/store/store.ts";
import { boot, offer, sourceHead } from "../support/source-head.ts";

const body = Buffer.from("the published messages");
const signal = new AbortController().signal;

export function storeContract(name: string, open: (limits?: BootLimits) => Promise<Store>): void {
  describe(`store contract: ${name}`, () => {
    test("put() makes a record that get() and read() give back with every field", async () => {
      await using store = await open();
      const head = sourceHead({
        status: "stale",
        staleBy: "session",
        trainingStep: 18_446_744_073_709_551_615n,
        layoutSignature: "sig",
        publisher: "spiffe://fleet/author/node-a",
        sessionId: "s-1",
        workerId: "wörker/1",
      });
      assert.equal(await store.put(first(head), signal), true);
      assert.deepEqual((await store.get(head, signal))?.head, head);
      const stored = await store.read(head, signal);
      assert.deepEqual(stored?.head, head);
      assert.deepEqual(Buffer.from(stored?.body ?? []), body);
    });

    test("get() gives undefined for a record that was never put", async () => {
      await using store = await open();
      assert.equal(await store.get(sourceHead(), signal), undefined);
      assert.equal(await store.read(sourceHead(), signal), undefined);
      assert.deepEqual(await store.ofSource("0123456789abcdef", signal), []);
    });

    test("put() with replaces null writes nothing when the record exists", async () => {
      await using store = await open();
      await store.put(first(sourceHead({ workerRank: 1 })), signal);
      assert.equal(await store.put(first(sourceHead({ workerRank: 2 })), signal), false);
      assert.equal((await store.get(sourceHead(), signal))?.head.workerRank, 1);
    });

    test("put() without a body keeps the body, and makes no record where none is", async () => {
      await using store = await open();
      const head = sourceHead();
      const bare: Put = { head, replaces: null, when: "committed" };
      assert.equal(await store.put(bare, signal), false);
      await store.put(first(head), signal);
      const { revision } = present(await store.get(head, signal));
      assert.equal(await store.put({ ...bare, replaces: revision }, signal), true);
      assert.deepEqual(Buffer.from(present(await store.read(head, signal)).body), body);
    });

    test("put() lets exactly one of two writers replace one revision", async () => {
      await using store = await open();
      await store.put(first(sourceHead()), signal);
      const { revision } = present(await store.get(sourceHead(), signal));
      const write = (workerRank: number): Promise<boolean> =>
        store.put(
          { head: sourceHead({ workerRank }), replaces: revision, when: "flushed" },
          signal,
        );
      const won = await Promise.all([write(1), write(2), write(3)]);
      assert.equal(won.filter(Boolean).length, 1);
      const winner = won.indexOf(true) + 1;
      assert.equal((await store.get(sourceHead(), signal))?.head.workerRank, winner);
    });

    test("a revision is not met again by a record that was removed and came back", async () => {
      await using store = await open();
      await store.put(first(sourceHead()), signal);
      const old = present(await store.get(sourceHead(), signal)).revision;
      assert.equal(await store.remove(sourceHead(), old, signal), true);
      await store.put(first(sourceHead()), signal);
      assert.equal(await store.remove(sourceHead(), old, signal), false);
      const put: Put = { head: sourceHead({ workerRank: 9 }), replaces: old, when: "committed" };
      assert.equal(await store.put(put, signal), false);
    });

    test("remove() takes the record out of every listing", async () => {
      await using store = await open();
      await store.put(first(sourceHead()), signal);
      const { revision } = present(await store.get(sourceHead(), signal));
      assert.equal(await store.remove(sourceHead(), revision, signal), true);
      assert.equal(await store.remove(sourceHead(), revision, signal), false);
      assert.equal(await store.read(sourceHead(), signal), undefined);
      assert.deepEqual(await store.ofSource(sourceHead().sourceId, signal), []);
      assert.deepEqual(await shelf(store, "complete"), []);
      assert.deepEqual(await all(store), []);
    });

    test("ofSource() gives the records of one id and of no other", async () => {
      await using store = await open();
      for (const sourceId of ["0123456789abcdee", "0123456789abcdef", "0123456789abcdf0"]) {
        for (const workerId of ["a", "b"])
          await store.put(first(sourceHead({ sourceId, workerId })), signal);
      }
      const heads = await store.ofSource("0123456789abcdef", signal);
      assert.deepEqual(heads.map(({ sourceId, workerId }) => `${sourceId}/${workerId}`).sort(), [
        "0123456789abcdef/a",
        "0123456789abcdef/b",
      ]);
    });

    test("onShelf() gives what is ready and offered, by completeness, page by page", async () => {
      await using store = await open();
      const workers = ["d", "b", "a", "e", "c"];
      for (const workerId of workers) await store.put(first(sourceHead({ workerId })), signal);
      const partial = sourceHead({ workerId: "p", offer: offer({ complete: false }) });
      await store.put(first(partial), signal);
      await store.put(first(sourceHead({ workerId: "x", offer: null })), signal);
      await store.put(first(sourceHead({ workerId: "y", status: "initializing" })), signal);
      assert.deepEqual(await shelf(store, "complete", { after: "", limit: 2 }), ["a", "b"]);
      assert.deepEqual(await shelf(store, "complete", { after: "b", limit: 2 }), ["c", "d"]);
      assert.deepEqual(await shelf(store, "complete", { after: "bb", limit: 9 }), ["c", "d", "e"]);
      assert.deepEqual(await shelf(store, "complete", { after: "e", limit: 9 }), []);
      assert.deepEqual(await shelf(store, "partial"), ["p"]);
    });

    test("onShelf() follows a record that becomes complete, stale and ready again", async () => {
      await using store = await open();
      const become = async (fields: Partial<SourceHead>): Promise<[string[], string[]]> => {
        const before = await store.get(sourceHead(), signal);
        const replaces = before?.revision ?? null;
        await store.put({ head: sourceHead(fields), body, replaces, when: "committed" }, signal);
        return [await shelf(store, "complete"), await shelf(store, "partial")];
      };
      const one = ["worker-1"];
      assert.deepEqual(await become({ offer: offer({ complete: false }) }), [[], one]);
      assert.deepEqual(await become({}), [one, []]);
      assert.deepEqual(await become({ status: "stale", staleBy: "timeout" }), [[], []]);
      assert.deepEqual(await become({}), [one, []]);
      assert.deepEqual(await become({ offer: null }), [[], []]);
    });

    test("all() walks every record once, over more than one batch", async () => {
      await using store = await open();
      const ids = Array.from({ length: 1_203 }, (_, index) => `worker-${index}`);
      await Promise.all(ids.map((workerId) => store.put(first(sourceHead({ workerId })), signal)));
      const heads = await all(store);
      assert.deepEqual(heads.map(({ workerId }) => workerId).sort(), [...ids].sort());
    });

    test("a change of the caller's buffer after put() does not reach the store", async () => {
      await using store = await open();
      const mine = Buffer.from("before");
      await store.put(
        { head: sourceHead(), body: mine, replaces: null, when: "committed" },
        signal,
      );
      mine.write("AFTER!");
      assert.equal(
        Buffer.from(present(await store.read(sourceHead(), signal)).body).toString(),
        "before",
      );
    });

    test("boots() gives the newest first, each boot id once", async () => {
      await using store = await open();
      for (const bootId of ["a", "b", "c"]) await store.putBoot(boot({ bootId }), signal);
      await store.putBoot(boot({ bootId: "a", readyMs: null }), signal);
      const boots = await store.boots(10, signal);
      assert.deepEqual(
        boots.map(({ bootId }) => bootId),
        ["a", "c", "b"],
      );
      assert.equal(boots[0]?.readyMs, null);
      assert.equal(Buffer.from(boots[1]?.record ?? []).toString(), '{"phases":[]}');
      assert.equal((await store.boots(2, signal)).length, 2);
    });

    test("putBoot() drops the oldest beyond the number and beyond the bytes allowed", async () => {
      await using store = await open({ bootsMax: 3, bootBytesMax: 100 });
      const put = (bootId: string, bytes: number): Promise<void> =>
        store.putBoot(boot({ bootId, record: Buffer.alloc(bytes, 32) }), signal);
      for (const bootId of ["a", "b", "c", "d"]) await put(bootId, 10);
      const ids = async (): Promise<string[]> =>
        (await store.boots(10, signal)).map(({ bootId }) => bootId);
      assert.deepEqual(await ids(), ["d", "c", "b"]);
      await put("e", 85);
      assert.deepEqual(await ids(), ["e", "d"]);
    });

    test("putDocument() gives back what it wrote, under a revision that is never met again", async () => {
      await using store = await open();
      assert.equal(await store.document("ep/moe", signal), undefined);
      const write = (text: string, replaces: number | null) =>
        store.putDocument({ name: "ep/moe", bytes: Buffer.from(text), replaces }, signal);
      const first = await write("one", null);
      assert.equal(await write("again", null), null);
      const second = await write("two", first);
      assert.equal(await write("late", first), null);
      const stored = present(await store.document("ep/moe", signal));
      assert.equal(Buffer.from(stored.bytes).toString(), "two");
      assert.equal(stored.revision, second);
      assert.notEqual(first, second);
      await store.putDocument({ name: "ep/a", bytes: Buffer.from("x"), replaces: null }, signal);
      assert.deepEqual(await store.documentNames(signal), ["ep/a", "ep/moe"]);
    });

    test("putDocument() lets exactly one of several writers replace one revision", async () => {
      await using store = await open();
      const write = (text: string, replaces: number | null) =>
        store.putDocument({ name: "d", bytes: Buffer.from(text), replaces }, signal);
      const first = await write("first", null);
      const won = await Promise.all(["a", "b", "c"].map((text) => write(text, first)));
      assert.equal(won.filter((revision) => revision !== null).length, 1);
      const stored = present(await store.document("d", signal));
      const winner = won.findIndex((revision) => revision !== null);
      assert.equal(Buffer.from(stored.bytes).toString(), ["a", "b", "c"][winner]);
    });

    test("a call whose signal has fired is refused", async () => {
      await using store = await open();
      const fired = AbortSignal.abort();
      const isCancelled = (error: unknown): boolean =>
        error instanceof RelightError && error.code === "cancelled";
      await assert.rejects(store.get(sourceHead(), fired), isCancelled);
      await assert.rejects(store.put(first(sourceHead()), fired), isCancelled);
      await assert.rejects(store.ofSource("0123456789abcdef", fired), isCancelled);
      await assert.rejects(store.probe(fired), isCancelled);
    });

    test("a closed store answers store_unavailable, never an empty list", async () => {
      const store = await open();
      await store.put(first(sourceHead()), signal);
      await store[Symbol.asyncDispose]();
      await store[Symbol.asyncDispose]();
      const isUnavailable = (error: unknown): boolean =>
        error instanceof RelightError && error.code === "store_unavailable";
      await assert.rejects(store.ofSource(sourceHead().sourceId, signal), isUnavailable);
      await assert.rejects(shelf(store, "complete"), isUnavailable);
      await assert.rejects(all(store), isUnavailable);
      await assert.rejects(store.boots(1, signal), isUnavailable);
      await assert.rejects(store.probe(signal), isUnavailable);
    });
  });
}

function first(head: SourceHead): Put {
  return { head, body, replaces: null, when: "flushed" };
}

function present<Value>(value: Value | undefined): Value {
  assert.notEqual(value, undefined);
  return value as Value;
}

async function shelf(
  store: Store,
  which: "complete" | "partial",
  page = { after: "", limit: 100 },
): Promise<string[]> {
  const at = { sourceId: sourceHead().sourceId, shelf: which, ...page };
  return (await store.onShelf(at, signal)).map(({ workerId }) => workerId);
}

async function all(store: Store): Promise<SourceHead[]> {
  const heads: SourceHead[] = [];
  for await (const batch of store.all(signal)) heads.push(...batch);
  return heads;
}
