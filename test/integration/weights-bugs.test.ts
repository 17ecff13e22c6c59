// SPDX-License-Identifier: Apache-2.0
// Bugs that somebody had with weights from a peer, each with the test that holds it off here. The list is
// data, so that a test that is renamed or removed is missed.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { inWorld } from "../contracts/weights-world.ts";

const root = path.resolve(import.meta.dirname, "../..");

/** What went wrong, and where; then [file, words of the test's name] for each test. */
const bugs: readonly (readonly [string, ...(readonly [string, string])[]])[] = [
  [
    "another checkpoint of the same shapes is served silently (vllm 59647: names and headers only)",
    ["test/contracts/weights.ts", "same shapes with other values are refused"],
    ["python/tests/test_engines.py", "a_directory_is_the_same_only_while_its_files_are"],
    ["src/weights/weights.test.ts", "contentId() differs for other values of the same shapes"],
  ],
  [
    "a source that dies half-way costs the whole load, or minutes",
    ["test/contracts/weights.ts", "a source killed in the middle of the read"],
    ["test/integration/weights-kills.test.ts", "at each moment: the target has the values"],
    ["test/contracts/weights.ts", "one that accepts and never answers, cost a bounded time"],
    ["src/weights/pull.test.ts", "a source over a link slower than the slowest allowed"],
  ],
  [
    "a source changes its weights under a reader",
    ["test/contracts/weights.ts", "a source that changes in the middle of the read is read again"],
    ["src/weights/leases.test.ts", "a change refuses readers old and new"],
    ["test/integration/weights-fleet.test.ts", "two take the newest values"],
  ],
  [
    "a draft overwrites its target, stages and ranks collide (sglang 32905, 37216)",
    ["test/contracts/weights.ts", "a draft and its target on one agent, and two pipeline stages"],
    ["python/tests/test_engines.py", "ranks_stages_experts_and_drafts_are_told_apart"],
  ],
  [
    "post-load processing is done twice or never; derived tensors stay behind (sglang 32905, 20818)",
    [
      "python/tests/test_engines.py",
      "a_live_replica_fills_what_the_dummy_loader_built_and_processed",
    ],
    ["python/tests/test_relight.py", "live_tensors_are_parameters_buffers_and_what_was_derived"],
    ["python/tests/test_relight.py", "tensors_in_lists_and_mappings_are_found"],
    ["test/integration/weights-loaders.test.ts", "the second takes the first one's weights"],
  ],
  [
    "kernels of the processing still run when others read (vllm-ascend 12173)",
    ["python/tests/test_relight.py", "the_gpu_is_waited_for_before_anything_is_described"],
  ],
  [
    "zero-byte, strided, aliased, padded tensors abort the batch or are torn (sglang 20818, vllm 48312)",
    ["test/contracts/weights.ts", "a target gets every tensor by"],
    ["src/weights/weights.test.ts", "never writes a byte of the target that is no tensor's"],
    ["src/weights/weights.test.ts", "copies memory that two names share once"],
  ],
  [
    "one client at a time; who has loaded cannot give (sglang 33821)",
    ["test/contracts/weights.ts", "a chain of three, and two targets at a time"],
    ["test/integration/weights-run.test.ts", "a third from the second"],
    ["src/weights/leases.test.ts", "claim() admits so many readers and no more"],
  ],
  [
    "only counts, names or sizes are compared (vllm 27417, sglang transfer engine)",
    ["src/weights/weights.test.ts", "and names it"],
    ["test/integration/weights-fleet.test.ts", "another layout is refused by name"],
  ],
  [
    "a failed receive is swallowed and the engine serves what lay there (vllm 27417)",
    ["test/contracts/weights.ts", "with nobody left the load fails, says that memory was written"],
    ["python/tests/test_engines.py", "a_failed_load_leaves_nothing_registered_and_starts_anew"],
    ["test/contracts/weights.ts", "tensors that fail their digest come from another source"],
  ],
  [
    "an unexpected error falls through into a half-written model (modelexpress)",
    [
      "python/tests/test_engines.py",
      "a_structure_that_cannot_be_built_with_dummies_is_a_cold_start",
    ],
    ["python/tests/test_relight.py", "an_agent_that_dies_in_the_call_may_have_written"],
  ],
  [
    "a refused publication makes a loaded worker load again (modelexpress)",
    ["python/tests/test_engines.py", "a_publication_that_is_refused_costs_only_the_publication"],
    [
      "test/integration/weights-bugs.test.ts",
      "a load whose part a sibling offers already is a load",
    ],
  ],
  [
    "a lease of a dead client pins its source (vllm-ascend rfork)",
    ["test/contracts/weights.ts", "a killed target gives its lease back"],
    ["test/integration/weights-kills.test.ts", "of the target's agent at each moment"],
  ],
  [
    "experts are moved about under a one-sided reader",
    ["python/tests/test_engines.py", "experts_that_a_balancer_moves_are_not_offered"],
  ],
  [
    "a store that does not answer looks like a fleet without sources",
    ["test/integration/weights-fleet.test.ts", "without a coordinator nothing is known of sources"],
  ],
  [
    "registrations of each load are never given back (sglang, vllm 37131)",
    ["test/integration/weights-bugs.test.ts", "ten loads leave no descriptor and no lease"],
  ],
  [
    "the cap on bandwidth does not hold while the source serves",
    ["src/weights/pull.test.ts", "keeps to the cap while the source serves"],
  ],
  [
    "no room on the target's GPU, another GPU, a handle of a process that is gone",
    ["src/weights/pull.test.ts", "a GPU without room is told as such"],
    ["src/weights/weights.test.ts", "another GPU architecture"],
    ["src/weights/pull.test.ts", "a handle that cannot be opened leads to the next source"],
    ["test/contracts/gpu.ts", "an ipc handle of a process that is gone"],
  ],
];

describe("bugs that somebody had", { timeout: 60_000 }, () => {
  for (const [bug, ...tests] of bugs) {
    test(`${bug}: its tests are there`, () => {
      assert.ok(tests.length > 0);
      for (const [file, name] of tests) {
        const text = readFileSync(path.join(root, file), "utf8");
        assert.ok(text.includes(name), `${file} has no test "${name}"`);
      }
    });
  }

  test("ten loads leave no descriptor and no lease", async () => {
    await inWorld({ backend: "fake", deviceCount: 2 }, async ({ agent, engine }) => {
      const [from, to] = [agent("a"), agent("b")];
      const source = engine(from, { sharing: "descriptor" });
      await source.ask({ do: "fill", salt: "x" });
      await source.ask({ do: "publish" });
      const load = { do: "load", sources: [from.socket], content: null } as const;
      const once = async () => {
        const target = engine(to, { sharing: "descriptor", isTarget: true });
        await target.ask(load);
        await target.kill();
      };
      await once();
      const before = readdirSync("/proc/self/fd").length;
      for (let round = 0; round < 10; round += 1) await once();
      // Connections close a turn after their owner: what is asked for is that nothing adds up.
      assert.ok(readdirSync("/proc/self/fd").length <= before + 4);
      assert.equal(await from.readers(), 0);
    });
  });

  test("a load whose part a sibling offers already is a load all the same", async () => {
    await inWorld({ backend: "fake", deviceCount: 2 }, async ({ agent, engine }) => {
      const [from, to] = [agent("a"), agent("b")];
      const source = engine(from, {});
      await source.ask({ do: "fill", salt: "x" });
      await source.ask({ do: "publish" });
      const load = { do: "load", sources: [from.socket], content: null } as const;
      const siblings = [engine(to, { isTarget: true }), engine(to, { isTarget: true })];
      const offers: boolean[] = [];
      for (const sibling of siblings) {
        const loaded = await sibling.ask<{ readonly isOffered: boolean }>(load);
        offers.push(loaded.isOffered);
        assert.deepEqual(await sibling.ask({ do: "differing", salt: "x" }), []);
      }
      assert.deepEqual(offers, [true, false]);
    });
  });
});
