// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { firstFiles, parseIndex, type RankPlace } from "./checkpoint-order.ts";

const nobody: RankPlace = { patterns: [], tensorRank: null, pipeline: null };
const none = () => null;

/** Eight layers in four files, the embedding in the first and the head in the last. */
const files = ["a", "b", "c", "d"].map((name) => `${name}.safetensors`);
const index = Buffer.from(
  JSON.stringify({
    weight_map: {
      "model.embed_tokens.weight": files[0],
      ...Object.fromEntries(
        Array.from({ length: 8 }, (_, layer) => [
          `model.layers.${layer}.mlp.weight`,
          files[Math.floor(layer / 2)],
        ]),
      ),
      "lm_head.weight": files[3],
    },
  }),
);
const indexPath = "model.safetensors.index.json";
const paths = [...files, indexPath, "config.json"];
const read = (path: string) => (path === indexPath ? index : null);

describe("firstFiles()", () => {
  test("puts a stage's layers first, and the ends with the first and the last stage", () => {
    const stage = (rank: number, count: number) =>
      firstFiles(paths, read, { ...nobody, pipeline: { rank, count } });
    assert.deepEqual(stage(0, 4), [[files[0], files[3]]], "embedding and head may be tied");
    assert.deepEqual(stage(1, 4), [[files[1]]]);
    assert.deepEqual(stage(1, 3), [[files[1], files[2]]], "a border belongs to both");
    assert.deepEqual(stage(0, 1), [files]);
  });

  test("puts the shards that carry a rank's number first", () => {
    const shards = ["model-rank-1-part-0.safetensors", "model-rank-10-part-0.safetensors"];
    const rank = (tensorRank: number) => firstFiles(shards, none, { ...nobody, tensorRank });
    assert.deepEqual(rank(1), [[shards[0]]]);
    assert.deepEqual(rank(10), [[shards[1]]]);
    assert.deepEqual(rank(0), []);
    assert.deepEqual(firstFiles(files, none, { ...nobody, tensorRank: 1 }), [], "all read all");
  });

  test("puts what the patterns name before everything else", () => {
    const place = { patterns: ["?.safetensors", "sub/*"], tensorRank: null, pipeline: null };
    assert.deepEqual(firstFiles(["a.safetensors", "sub/x", "other"], none, place), [
      ["a.safetensors", "sub/x"],
    ]);
    const dots = { ...place, patterns: ["a.safetensors"] };
    assert.deepEqual(firstFiles(["axsafetensors"], none, dots), [], "a dot is a dot");
  });

  test("puts nothing first without a readable index", () => {
    const place = { ...nobody, pipeline: { rank: 0, count: 2 } };
    assert.deepEqual(firstFiles(paths, none, place), []);
    assert.equal(parseIndex(Buffer.from('{"weight_map":{"a":1}}')), null);
  });
});
