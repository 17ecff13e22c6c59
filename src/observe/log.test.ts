// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createLog, type LogOptions, silentLog } from "./log.ts";

function linesOf(options: Partial<LogOptions>, act: (log: ReturnType<typeof createLog>) => void) {
  const lines: string[] = [];
  const write = (line: string) => void lines.push(line);
  act(createLog({ level: "info", format: "text", now: () => 3_723_004, ...options, write }));
  return lines;
}

describe("createLog()", () => {
  test("writes one text line for people, values quoted where they need it", () => {
    const lines = linesOf({}, (log) => {
      log.info("cold_start", { code: "no_source", message: 'two words and "one"', count: 3 });
    });
    assert.deepEqual(lines, [
      '01:02:03.004 info  cold_start code=no_source message="two words and \\"one\\"" count=3\n',
    ]);
  });

  test("writes nothing below its level", () => {
    const lines = linesOf({ level: "warn" }, (log) => {
      log.debug("failure");
      log.info("failure");
      log.error("failure");
    });
    assert.equal(lines.length, 1);
    assert.deepEqual(
      linesOf({ level: "silent" }, (log) => log.error("failure")),
      [],
    );
  });

  test("keeps a value with line breaks on one line, so that no line can be forged", () => {
    const lines = linesOf({}, (log) => log.warn("failure", { message: "a\n00:00 error forged" }));
    assert.equal(lines.join("").split("\n").length, 2);
  });

  test("binds context to every line of with(), and none to its parent", () => {
    const lines = linesOf({ format: "json" }, (log) => {
      log.with({ node: "n1" }).with({ epoch: 2 }).info("failure");
      log.info("failure");
    });
    const [bound, plain] = lines.map((line) => JSON.parse(line));
    assert.deepEqual([bound.node, bound.epoch, plain.node], ["n1", 2, undefined]);
  });
});

test("silentLog takes every call and stays itself", () => {
  silentLog.with({ node: "n" }).error("failure");
  assert.equal(silentLog.with({}), silentLog);
});
