// SPDX-License-Identifier: Apache-2.0
// The registry on the memory store and a clock that only the test moves.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { rejectsWith } from "../../test/support/rejects.ts";
import { offer, sourceHead } from "../../test/support/source-head.ts";
import { RelightError } from "../errors.ts";
import { MemoryStore } from "../store/memory.ts";
import type { Put, SourceHead, SourceKey, Store, Stored } from "../store/store.ts";
import type { Publication } from "./records.ts";
import { type Advanced, Registry } from "./registry.ts";
import type { RegistryLimits } from "./registry-limits.ts";
import type { SourceEvent } from "./watchers.ts";

const signal = new AbortController().signal;
const body = Buffer.from("body");
const { sourceId } = sourceHead();
const one: SourceKey = { sourceId, workerId: "worker-1" };

describe("sessions", () => {
  test("a source is offered while its session lives and withheld 4 s after the last heartbeat", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    await world.publish({ sessionId: id });
    for (let beat = 0; beat < 200; beat++) {
      await world.pass(1_000);
      world.registry.heartbeat(id, 0);
    }
    assert.deepEqual(await world.found(), ["worker-1"]);
    const advanced = await world.pass(4_001);
    assert.equal(advanced.sessionsLost, 1);
    assert.deepEqual(await world.found(), []);
    assert.equal(await world.status(), "stale");
    assert.equal(world.registry.heartbeat(id, 0), false);
  });

  test("goodbye() withholds at once", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    await world.publish({ sessionId: id });
    await world.registry.goodbye(id, signal);
    assert.deepEqual(await world.found(), []);
    assert.equal(await world.status(), "stale");
  });

  test("hello() within the grace resumes the session with its sources", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    await world.publish({ sessionId: id });
    world.now += 3_900;
    assert.deepEqual(world.hello(id), { id, resumed: true });
    await world.pass(3_900);
    assert.deepEqual(await world.found(), ["worker-1"]);
  });

  test("hello() after the grace opens a new session", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    await world.pass(4_001);
    const next = world.hello(id);
    assert.equal(next.resumed, false);
    assert.notEqual(next.id, id);
  });

  test("hello() does not hand a session to another node", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    const other = world.registry.hello({ nodeId: "thief", agentEndpoint: "", sessionId: id });
    assert.equal(other.resumed, false);
  });

  test("publish() for a session that has ended is refused and offers nothing", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    await world.registry.goodbye(id, signal);
    await rejectsWith("conflict", world.publish({ sessionId: id }));
    assert.deepEqual(await world.found(), []);
  });

  test("goodbye() wins over a publish that is being written when it comes", async () => {
    const world = await openWorld(new SlowStore());
    const { id } = world.hello();
    const publishing = world.publish({ sessionId: id });
    const refused = rejectsWith("conflict", publishing);
    await world.registry.goodbye(id, signal);
    await refused;
    assert.deepEqual(await world.found(), []);
    assert.equal(await world.status(), "stale");
  });

  test("the end of an old session leaves alone what a newer one published again", async () => {
    const world = await openWorld();
    const [old, next] = [world.hello(), world.hello()];
    await world.publish({ sessionId: old.id });
    await world.publish({ sessionId: next.id });
    await world.registry.goodbye(old.id, signal);
    assert.deepEqual(await world.found(), ["worker-1"]);
  });

  test("a lost session withholds also when the store fails, and is written when it is back", async () => {
    const store = new FailingStore();
    const world = await openWorld(store);
    const { id } = world.hello();
    await world.publish({ sessionId: id });
    store.isFailing = true;
    const advanced = await world.pass(4_001);
    assert.equal(advanced.failure?.code, "store_unavailable");
    store.isFailing = false;
    assert.deepEqual(await world.found(), []);
    assert.equal((await world.registry.listSource(sourceId, signal))[0]?.head.status, "stale");
    await world.pass(1_001);
    assert.equal((await store.get(one, signal))?.head.status, "stale");
  });

  test("a source is withheld when its grace is over, though advance() is late", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    await world.publish({ sessionId: id });
    world.now += 4_001;
    assert.deepEqual(await world.found(), []);
    assert.equal(await world.status(), "stale");
    assert.equal(world.registry.heartbeat(id, 0), true);
    assert.deepEqual(await world.found(), ["worker-1"]);
  });

  test("a stall of the coordinator itself ends no session", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    await world.publish({ sessionId: id });
    await world.pass(1_000);
    world.now += 60_000;
    assert.equal((await world.registry.advance(signal)).sessionsLost, 0);
    assert.deepEqual(await world.found(), ["worker-1"]);
    assert.equal((await world.pass(4_001)).sessionsLost, 1);
    assert.deepEqual(await world.found(), []);
  });

  test("withdraw() takes back one source at once, and only the session's own", async () => {
    const world = await openWorld();
    const [mine, other] = [world.hello(), world.hello()];
    await world.publish({ sessionId: mine.id });
    const what = { workerId: "worker-1", sourceId: null };
    assert.equal(await world.registry.withdraw({ ...what, sessionId: other.id }, signal), 0);
    assert.deepEqual(await world.found(), ["worker-1"]);
    assert.equal(await world.registry.withdraw({ ...what, sessionId: mine.id }, signal), 1);
    assert.deepEqual(await world.found(), []);
    assert.equal(await world.registry.withdraw({ ...what, sessionId: mine.id }, signal), 0);
    await world.publish({ sessionId: mine.id });
    assert.deepEqual(await world.found(), ["worker-1"]);
  });
});

describe("lifecycle", () => {
  test("a worker without session turns stale after 90 s of silence and is removed after an hour", async () => {
    const world = await openWorld();
    await world.publish({ sessionId: null });
    assert.equal((await world.pass(90_000)).markedStale, 0);
    assert.equal((await world.pass(1)).markedStale, 1);
    assert.equal(await world.status(), "stale");
    assert.equal((await world.pass(3_600_000)).removed, 0);
    assert.equal((await world.pass(1)).removed, 1);
    assert.equal(await world.status(), undefined);
    assert.equal(world.registry.sourceCount, 0);
  });

  test("updateStatus() keeps a record alive, and its deadline is looked at only when it comes up", async () => {
    const store = new CountingStore();
    const world = await openWorld(store);
    await world.publish({ sessionId: null });
    for (let beat = 0; beat < 20; beat++) {
      await world.pass(30_000);
      assert.equal(await world.update("ready"), undefined);
      assert.deepEqual(await world.registry.advance(signal), quiet);
    }
    assert.equal(await world.status(), "ready");
    const before = store.calls;
    await world.registry.advance(signal);
    assert.equal(store.calls, before);
  });

  test("STALE wins over READY in whichever order the two are decided", async () => {
    for (const order of [
      ["ready", "stale"],
      ["stale", "ready"],
    ] as const) {
      const world = await openWorld(new SlowStore());
      await world.publish({ sessionId: null });
      await Promise.all(order.map((status) => world.update(status)));
      assert.equal(await world.status(), "stale", order.join());
      assert.match((await world.update("ready")) ?? "", /publish again/);
    }
  });

  test("publish() again after STALE is a new incarnation and may be READY", async () => {
    const world = await openWorld();
    await world.publish({ sessionId: null });
    await world.update("stale");
    await world.publish({ sessionId: null });
    assert.equal(await world.update("ready"), undefined);
    assert.equal(await world.status(), "ready");
  });

  test("updateStatus() says why it did nothing: no record, another rank", async () => {
    const world = await openWorld();
    assert.match((await world.update("ready")) ?? "", /no such worker/);
    await world.publish({ sessionId: null });
    const update = { key: one, status: "ready", workerRank: 3 } as const;
    assert.match((await world.registry.updateStatus(update, signal)) ?? "", /rank 0, not 3/);
  });

  test("a record that is stale and then active again gets the short deadline back", async () => {
    const world = await openWorld();
    await world.publish({ sessionId: null });
    await world.pass(90_001);
    await world.update("ready");
    assert.equal((await world.pass(90_001)).markedStale, 1);
  });
});

describe("find", () => {
  test("complete sources come first, then those with fewer readers", async () => {
    const world = await openWorld();
    const readers = { a: 5, b: 1, c: 0 };
    for (const [workerId, count] of Object.entries(readers)) {
      const { id } = world.hello();
      const complete = workerId !== "c";
      await world.publish({ sessionId: id, workerId, offer: offer({ complete }) });
      world.registry.heartbeat(id, count);
    }
    assert.deepEqual(await world.found(), ["b", "a", "c"]);
    assert.deepEqual(await world.found({ limit: 1 }), ["b"]);
    assert.deepEqual(await world.found({ excludeWorkerId: "b" }), ["a", "c"]);
  });

  test("equal sources take turns, so that a fleet spreads evenly", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    const workers = Array.from({ length: 100 }, (_, index) => `worker-${100 + index}`);
    for (const workerId of workers) await world.publish({ sessionId: id, workerId });
    const times = new Map<string, number>();
    for (let call = 0; call < 1_000; call++) {
      const [first] = await world.found({ limit: 4 });
      times.set(first ?? "none", (times.get(first ?? "none") ?? 0) + 1);
    }
    assert.equal(times.size, 100);
    assert.deepEqual([...new Set(times.values())], [10]);
  });

  test("one complete source is found among a thousand partial ones", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    for (let index = 0; index < 1_000; index++) {
      const complete = index === 777;
      await world.publish({ sessionId: id, workerId: `w${index}`, offer: offer({ complete }) });
    }
    for (let call = 0; call < 50; call++) assert.equal((await world.found())[0], "w777");
  });

  test("find() looks at a bounded number of records, however many there are", async () => {
    const store = new CountingStore();
    const world = await openWorld(store);
    const { id } = world.hello();
    for (let index = 0; index < 2_000; index++)
      await world.publish({ sessionId: id, workerId: `w${index}` });
    store.rows = 0;
    await world.found();
    assert.ok(store.rows <= 128, `${store.rows} rows`);
  });

  test("find() throws when the store fails, and does not answer an empty list", async () => {
    const store = new FailingStore();
    const world = await openWorld(store);
    store.isFailing = true;
    await rejectsWith("store_unavailable", world.found());
    await rejectsWith("store_unavailable", world.registry.listSource(sourceId, signal));
    await rejectsWith("store_unavailable", world.registry.read(one, signal));
  });
});

describe("watch", () => {
  test("a watcher hears of added, updated and removed sources, and of nothing else", async () => {
    const world = await openWorld();
    const events: string[] = [];
    const stop = world.registry.watch([sourceId], (event) => events.push(named(event)));
    const { id } = world.hello();
    await world.publish({ sessionId: id, status: "initializing" });
    await world.publish({ sessionId: id });
    await world.publish({ sessionId: id, offer: offer({ complete: false }) });
    await world.publish({ sessionId: id, sourceId: "f".repeat(16) });
    await world.update("ready");
    await world.update("initializing");
    await world.update("ready");
    await world.registry.goodbye(id, signal);
    stop();
    const next = world.hello();
    await world.publish({ sessionId: next.id });
    assert.deepEqual(events, [
      "added worker-1",
      "updated worker-1",
      "removed worker-1",
      "added worker-1",
      "removed worker-1",
    ]);
  });

  test("a watcher hears of a source whose session was lost", async () => {
    const world = await openWorld();
    const events: string[] = [];
    world.registry.watch([sourceId], (event) => events.push(named(event)));
    const { id } = world.hello();
    await world.publish({ sessionId: id });
    await world.pass(4_001);
    assert.deepEqual(events, ["added worker-1", "removed worker-1"]);
  });
});

describe("words of a session", () => {
  test("publish() of an older word than the withdrawal it was overtaken by is refused", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    const said = publication({ sessionId: id });
    const what = { sessionId: id, workerId: said.workerId, sourceId: said.sourceId };
    await world.registry.publish(said, body, signal, { word: 1 });
    await world.registry.withdraw({ ...what, word: 2 }, signal);
    await rejectsWith("conflict", world.registry.publish(said, body, signal, { word: 1 }));
    await world.registry.publish(said, body, signal, { word: 3 });
    await world.registry.publish(said, body, signal, { word: 3 });
    assert.equal(await world.registry.withdraw({ ...what, word: 2 }, signal), 0, "an older word");
  });

  test("withdraw() of a source that is not there yet outlives its publication on the way", async () => {
    const world = await openWorld();
    const { id } = world.hello();
    const said = publication({ sessionId: id });
    const what = { sessionId: id, workerId: said.workerId, sourceId: said.sourceId, word: 2 };
    assert.equal(await world.registry.withdraw(what, signal), 0);
    await rejectsWith("conflict", world.registry.publish(said, body, signal, { word: 1 }));
  });
});

describe("restart", () => {
  test("open() files every deadline again and gives sessions one grace to come back", async () => {
    const store = new MemoryStore();
    const before = await openWorld(store);
    const [kept, lost] = [before.hello(), before.hello()];
    await before.publish({ sessionId: kept.id, workerId: "kept" });
    await before.publish({ sessionId: lost.id, workerId: "lost" });
    await before.publish({ sessionId: null, workerId: "express", offer: null });
    const after = await openWorld(store, { now: before.now + 2_000 });
    assert.equal(after.registry.sourceCount, 3);
    assert.deepEqual(await after.found(), ["kept", "lost"]);
    assert.deepEqual(after.hello(kept.id), { id: kept.id, resumed: true });
    after.now += 4_001;
    after.registry.heartbeat(kept.id, 0);
    await after.registry.advance(signal);
    assert.deepEqual(await after.found(), ["kept"]);
    assert.equal((await after.pass(90_000)).markedStale, 1);
    assert.equal(
      (await store.get({ sourceId, workerId: "express" }, signal))?.head.staleBy,
      "timeout",
    );
  });

  test("a clock that was set back between two runs does not keep a record for ever", async () => {
    const store = new MemoryStore();
    const before = await openWorld(store, { now: 10_000_000_000 });
    await before.publish({ sessionId: null });
    const after = await openWorld(store, { now: 1_000_000 });
    await after.pass(90_001);
    assert.equal((await after.pass(1)).failure, null);
    assert.equal(await after.status(), "stale");
  });

  test("a clock that was set forward between two runs ages records, and a heartbeat revives them", async () => {
    const store = new MemoryStore();
    const before = await openWorld(store, { now: 1_000_000 });
    await before.publish({ sessionId: null });
    const after = await openWorld(store, { now: 500_000_000 });
    await after.registry.advance(signal);
    assert.equal(await after.status(), "stale");
    assert.equal(await after.update("ready"), undefined);
    assert.equal(await after.status(), "ready");
  });
});

const quiet = { sessionsLost: 0, markedStale: 0, removed: 0, failure: null };

interface World {
  now: number;
  /** Lets time pass, with an advance every second as the shell would have more often. */
  pass(ms: number): Promise<Advanced>;
  readonly registry: Registry;
  hello(sessionId?: string): { id: string; resumed: boolean };
  publish(fields: Partial<Publication>): Promise<void>;
  update(status: SourceHead["status"]): Promise<string | undefined>;
  found(options?: { excludeWorkerId?: string; limit?: number }): Promise<string[]>;
  status(): Promise<string | undefined>;
}

async function openWorld(
  store: Store = new MemoryStore(),
  options: { now?: number; limits?: Partial<RegistryLimits> } = {},
): Promise<World> {
  let sessions = 0;
  const world: World = {
    now: options.now ?? 1_000_000,
    registry: new Registry({
      store,
      clock: { now: () => world.now },
      newSessionId: () => `session-${options.now ?? 0}-${++sessions}`,
      limits: options.limits ?? {},
    }),
    pass: async (ms) => {
      let sum: Advanced = quiet;
      for (const until = world.now + ms; world.now < until; ) {
        world.now = Math.min(until, world.now + 1_000);
        const { sessionsLost, markedStale, removed, failure } =
          await world.registry.advance(signal);
        sum = {
          sessionsLost: sum.sessionsLost + sessionsLost,
          markedStale: sum.markedStale + markedStale,
          removed: sum.removed + removed,
          failure: sum.failure ?? failure,
        };
      }
      return sum;
    },
    hello: (sessionId) =>
      world.registry.hello({ nodeId: "node", agentEndpoint: "", sessionId: sessionId ?? null }),
    publish: (fields) => world.registry.publish(publication(fields), body, signal),
    update: (status) => world.registry.updateStatus({ key: one, status, workerRank: 0 }, signal),
    found: async ({ excludeWorkerId = "", limit = 8 } = {}) => {
      const found = await world.registry.find(sourceId, { excludeWorkerId, limit }, signal);
      return found.map(({ head }) => head.workerId);
    },
    status: async () => (await world.registry.read(one, signal))?.head.status,
  };
  await world.registry.open(signal);
  return world;
}

function publication(fields: Partial<Publication>): Publication {
  const { updatedAtMs: _updated, publishedAtMs: _published, staleBy: _by, ...rest } = sourceHead();
  return { ...rest, ...fields };
}

function named(event: SourceEvent): string {
  const { workerId } = event.type === "removed" ? event.key : event.head;
  return `${event.type} ${workerId}`;
}

/** Every call takes a few turns of the loop, so that overlapping calls really overlap. */
class SlowStore extends MemoryStore {
  override async get(key: SourceKey, within: AbortSignal): Promise<Stored | undefined> {
    await turns(3);
    return super.get(key, within);
  }

  override async put(put: Put, within: AbortSignal): Promise<boolean> {
    await turns(5);
    return super.put(put, within);
  }
}

class FailingStore extends MemoryStore {
  isFailing = false;

  override async get(key: SourceKey, within: AbortSignal): Promise<Stored | undefined> {
    this.#fail();
    return super.get(key, within);
  }

  override async read(key: SourceKey, within: AbortSignal): ReturnType<Store["read"]> {
    this.#fail();
    return super.read(key, within);
  }

  override async ofSource(id: string, within: AbortSignal): ReturnType<Store["ofSource"]> {
    this.#fail();
    return super.ofSource(id, within);
  }

  override async onShelf(
    at: Parameters<Store["onShelf"]>[0],
    within: AbortSignal,
  ): ReturnType<Store["onShelf"]> {
    this.#fail();
    return super.onShelf(at, within);
  }

  #fail(): void {
    if (this.isFailing) throw new RelightError("store_unavailable", "Cannot answer: told to fail");
  }
}

class CountingStore extends MemoryStore {
  calls = 0;
  rows = 0;

  override async get(key: SourceKey, within: AbortSignal): Promise<Stored | undefined> {
    this.calls++;
    return super.get(key, within);
  }

  override async onShelf(
    at: Parameters<Store["onShelf"]>[0],
    within: AbortSignal,
  ): ReturnType<Store["onShelf"]> {
    const heads = await super.onShelf(at, within);
    this.rows += heads.length;
    return heads;
  }
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await Promise.resolve();
}
