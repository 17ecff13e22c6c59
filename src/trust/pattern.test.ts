// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  isDnsPattern,
  isSpiffeId,
  isSpiffePattern,
  matchesDns,
  matchesSpiffe,
  matchesWord,
} from "./pattern.ts";

describe("patterns", () => {
  const spiffe: [string, string, boolean][] = [
    ["spiffe://fleet/author/a", "spiffe://fleet/author/a", true],
    ["spiffe://fleet/author/*", "spiffe://fleet/author/a", true],
    ["spiffe://fleet/author/*", "spiffe://fleet/author/a/b", false],
    ["spiffe://fleet/author/*", "spiffe://fleet/author/", false],
    ["spiffe://fleet/author/*", "spiffe://fleet/author", false],
    ["spiffe://fleet/author/*", "spiffe://fleet.evil/author/a", false],
    ["spiffe://fleet/author/a", "spiffe://fleet/author/ab", false],
    ["spiffe://fleet/author/a", "xspiffe://fleet/author/a", false],
    ["spiffe://fleet/author/*", "spiffe://fleet/author/..", false],
    ["spiffe://fleet/author/*", "spiffe://fleet/author/a?x=1", false],
    ["spiffe://fleet/author/*", "spiffe://fleet/author/a%2fb", false],
    ["spiffe://fleet/a.c", "spiffe://fleet/abc", false],
  ];
  for (const [pattern, id, wanted] of spiffe) {
    test(`matchesSpiffe() ${wanted ? "accepts" : "refuses"} ${id} for ${pattern}`, () => {
      assert.equal(matchesSpiffe(pattern, id), wanted);
    });
  }

  const dns: [string, string, boolean][] = [
    ["a.example.com", "a.example.com", true],
    ["*.example.com", "a.example.com", true],
    ["*.example.com", "a.b.example.com", false],
    ["*.example.com", "example.com", false],
    ["*.example.com", ".example.com", false],
    ["*.example.com", "a.example.com.evil.org", false],
    ["a.example.com", "a-example.com", false],
  ];
  for (const [pattern, name, wanted] of dns) {
    test(`matchesDns() ${wanted ? "accepts" : "refuses"} ${name} for ${pattern}`, () => {
      assert.equal(matchesDns(pattern, name), wanted);
    });
  }

  const words: [string, string, boolean][] = [
    ["*", "", true],
    ["triton", "triton", true],
    ["triton", "triton2", false],
    ["org/*", "org/model", true],
    ["org/*", "org/", false],
    ["org/*", "organ/model", false],
    ["t*", "triton", false],
    ["", "", true],
  ];
  for (const [pattern, word, wanted] of words) {
    test(`matchesWord() ${wanted ? "accepts" : "refuses"} "${word}" for "${pattern}"`, () => {
      assert.equal(matchesWord(pattern, word), wanted);
    });
  }

  test("isSpiffeId() refuses what two parsers could read differently", () => {
    for (const id of [
      "spiffe://a:1/b",
      "spiffe://u@a/b",
      "spiffe://A/b",
      "spiffe://a/b#c",
      "spiffe://a//b",
      "spiffe://a/./b",
      "spiffe://a/b/",
      "https://a/b",
    ])
      assert.equal(isSpiffeId(id), false, id);
  });

  test("patterns hold a star only as the last segment or the first label", () => {
    for (const text of ["spiffe://fleet/*/a", "spiffe://*", "spiffe://fleet/a*"])
      assert.equal(isSpiffePattern(text), false, text);
    for (const text of ["*", "a.*.com", "*a.com", "*.*.com"])
      assert.equal(isDnsPattern(text), false, text);
  });
});
