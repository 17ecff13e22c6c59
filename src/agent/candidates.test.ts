// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type Candidate, candidatesOf, groupByArtifact, shuffled } from "./candidates.ts";
import type { FoundSource } from "./coordinator-client.ts";

function found(overrides: Partial<FoundSource> = {}): FoundSource {
  return {
    sourceId: "0".repeat(16),
    workerId: "w",
    artifact: {
      artifactId: "a".repeat(64),
      family: "triton",
      totalBytes: 10,
      fileCount: 1,
      pieceCount: 1,
      baseArtifactIds: [],
    },
    endpoints: ["http://a:1"],
    complete: true,
    publishedAtMs: 0,
    readers: 0,
    ...overrides,
  };
}

function candidate(artifactId: string, overrides: Partial<Candidate> = {}): Candidate {
  return { artifactId, endpoint: "http://a:1", totalBytes: 1, isComplete: true, ...overrides };
}

describe("candidates", () => {
  test("candidatesOf() leaves out what is no artifact's id, and what nobody asked for so many of", () => {
    const { artifact } = found();
    const named = ["../../etc/passwd", "a\r\nX: y", "", "A".repeat(64)].map((artifactId) =>
      found({ artifact: { ...artifact, artifactId } }),
    );
    assert.deepEqual(candidatesOf(named), []);
    assert.equal(candidatesOf(Array.from({ length: 10_000 }, () => found())).length, 64);
  });

  test("candidatesOf() leaves out a source without an endpoint and takes the first of several", () => {
    const sources = [found({ endpoints: [] }), found({ endpoints: ["http://b:1", "http://c:1"] })];
    assert.deepEqual(
      candidatesOf(sources).map(({ endpoint }) => endpoint),
      ["http://b:1"],
    );
  });

  test("groupByArtifact() puts what somebody has whole before what is larger but partial", () => {
    const groups = groupByArtifact([
      candidate("large", { totalBytes: 1_000, isComplete: false }),
      candidate("small", { totalBytes: 1 }),
      candidate("medium", { totalBytes: 10 }),
    ]);
    assert.deepEqual(
      groups.map(({ artifactId }) => artifactId),
      ["medium", "small", "large"],
    );
  });

  test("groupByArtifact() keeps every source of an artifact together and looks at four artifacts", () => {
    const many = Array.from({ length: 9 }, (_, index) => candidate(`a${index}`));
    const groups = groupByArtifact([...many, candidate("a0", { endpoint: "http://b:1" })]);
    assert.equal(groups.length, 4);
    assert.equal(groups.find(({ artifactId }) => artifactId === "a0")?.sources.length, 2);
  });

  test("shuffled() gives every value once, in an order that chance decides", () => {
    const values = ["a", "b", "c"];
    const numbers = [0.9, 0.1, 0.5];
    assert.deepEqual(
      shuffled(values, () => numbers.shift() ?? 0),
      ["b", "c", "a"],
    );
    assert.deepEqual(values, ["a", "b", "c"]);
  });
});
