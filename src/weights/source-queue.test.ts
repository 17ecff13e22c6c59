// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { RelightError } from "../errors.ts";
import type { WeightSource } from "./source.ts";
import { SourceQueue } from "./source-queue.ts";

const refuse = () => Promise.reject(new Error("nobody asks it"));

function source(name: string, onClose = () => {}): WeightSource & Disposable {
  return { name, offer: refuse, claim: refuse, [Symbol.dispose]: onClose };
}

function busy(...readers: readonly string[]): RelightError {
  const details = { readers: readers.join("\n") };
  return new RelightError("source_busy", "Cannot read", { details });
}

function names(queue: SourceQueue): string[] {
  const found: string[] = [];
  for (let next = queue.next(); next !== null; next = queue.next()) found.push(next.name);
  return found;
}

test("next() gives what was found, then whom busy sources have named, each once and never itself", () => {
  const closed: string[] = [];
  const open = (address: string) => source(address, () => closed.push(address));
  const queue = new SourceQueue([source("a"), source("b")], open, "me");
  queue.hear(busy("c", "me", "a"));
  queue.hear(busy("c", "d", ""));
  assert.deepEqual(names(queue), ["a", "b", "c", "d"]);
  queue[Symbol.dispose]();
  assert.deepEqual(closed, ["c", "d"]);
});

test("hear() takes nobody from another failure, from an address that leads nowhere, or without end", () => {
  const queue = new SourceQueue([], (address) => (address === "x" ? null : source(address)), null);
  queue.hear(new RelightError("source_gone", "Cannot read", { details: { readers: "a" } }));
  queue.hear(busy("x"));
  assert.deepEqual(names(queue), []);
  queue.hear(busy(...Array.from({ length: 1_000 }, (_, index) => `s${index}`)));
  assert.equal(names(queue).length, 64);
});
