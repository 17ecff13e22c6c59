// SPDX-License-Identifier: Apache-2.0
// A store that fails or hangs behind a real coordinator: every face says so, and none says "empty".

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Identity } from "../../src/agent/coordinator-client.ts";
import { RelightError } from "../../src/errors.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import type { SourceHead, Store } from "../../src/store/store.ts";
import { coordinatorFixture, loopback, publication } from "../support/coordinator.ts";
import { rejectsWith } from "../support/rejects.ts";

const identity: Identity = { modelName: "org/model", mxSourceType: 4 };
const within = (): AbortSignal => AbortSignal.timeout(20_000);

/** Answers as the memory store does, fails, or never answers. */
class MoodyStore extends MemoryStore {
  mood: "good" | "failing" | "hanging" = "good";

  override async ofSource(id: string, signal: AbortSignal): Promise<readonly SourceHead[]> {
    await this.#mood(signal);
    return super.ofSource(id, signal);
  }

  override async onShelf(
    at: Parameters<Store["onShelf"]>[0],
    signal: AbortSignal,
  ): ReturnType<Store["onShelf"]> {
    await this.#mood(signal);
    return super.onShelf(at, signal);
  }

  override async get(
    key: Parameters<Store["get"]>[0],
    signal: AbortSignal,
  ): ReturnType<Store["get"]> {
    await this.#mood(signal);
    return super.get(key, signal);
  }

  override async probe(signal: AbortSignal): Promise<void> {
    await this.#mood(signal);
  }

  async #mood(signal: AbortSignal): Promise<void> {
    if (this.mood === "failing")
      throw new RelightError("store_unavailable", "Cannot answer: told to fail");
    if (this.mood === "good") return;
    await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  }
}

for (const mood of ["failing", "hanging"] as const) {
  test(`a ${mood} store gives store_unavailable to agents and 503 at /readyz, and then recovers`, async () => {
    const moody = new MoodyStore();
    const store = { kind: "open", store: moody } as const;
    await using fixture = await coordinatorFixture({ store, http: loopback, budgetMs: 300 });
    const { client, coordinator } = fixture;
    const ready = async (): Promise<number> =>
      (await fetch(`${coordinator.httpUrl}/readyz`, { signal: within() })).status;
    const { id: sessionId } = await client.openSession(
      { nodeId: "n", agentEndpoint: "" },
      within(),
    );
    await client.publish(publication({ sessionId }), within());
    assert.equal(await ready(), 200);
    moody.mood = mood;
    await rejectsWith("store_unavailable", client.find([identity], {}, within()));
    await rejectsWith("store_unavailable", client.listSources({ identity }, within()));
    await rejectsWith("store_unavailable", client.publish(publication({ sessionId }), within()));
    await rejectsWith(
      "store_unavailable",
      client.watch([identity], () => {}, within()),
    );
    assert.equal(await ready(), 503);
    assert.equal((await fetch(`${coordinator.httpUrl}/healthz`, { signal: within() })).status, 200);
    moody.mood = "good";
    assert.equal((await client.find([identity], {}, within()))[0]?.length, 1);
    assert.equal(await ready(), 200);
  });
}
