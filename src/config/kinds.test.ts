// SPDX-License-Identifier: Apache-2.0
// What each kind reads, refuses and writes back.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { MiB } from "../core/units.ts";
import {
  address,
  boolean,
  bytes,
  choice,
  directories,
  duration,
  integer,
  pairs,
  path,
  type Setting,
  text,
  texts,
  url,
} from "./kinds.ts";

const about = "For the test.";
const size = bytes({ fallback: "1MiB", min: 1, max: 2 ** 50, about });
const time = duration({ fallback: "1s", minMs: 0, maxMs: 2 ** 45, about });

function readOne(setting: Setting<unknown>, ...given: string[]): unknown {
  const reading = setting.read(given, "/base");
  return "value" in reading ? reading.value : { wrong: reading.wrong };
}

function wrong(given: string): unknown {
  return { wrong: given };
}

describe("kinds round trip", () => {
  const anyPort = fc.integer({ min: 0, max: 65_535 });
  const anyName = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,20}$/);

  function roundTrips<Value>(setting: Setting<Value>, values: fc.Arbitrary<Value>): void {
    fc.assert(
      fc.property(values, (value) => {
        assert.deepEqual(setting.read(setting.write(value), "/base"), { value });
      }),
      { numRuns: 200 },
    );
  }

  test("bytes() reads what it writes, for any size", () => {
    roundTrips(size, fc.integer({ min: 1, max: 2 ** 50 }));
  });

  test("duration() reads what it writes, for any time", () => {
    roundTrips(time, fc.integer({ min: 0, max: 2 ** 45 }));
  });

  test("integer() reads what it writes, for any number within its limits", () => {
    roundTrips(integer({ fallback: "5", min: 5, max: 50, about }), fc.integer({ min: 5, max: 50 }));
  });

  test("address() reads what it writes, for names, IPv4 and IPv6", () => {
    const host = fc.oneof(fc.ipV4(), anyName, fc.constantFrom("::1", "fe80::1", "::"));
    const addresses = fc.record({ host, port: anyPort }, { noNullPrototype: true });
    roundTrips(address({ fallback: "localhost:1", portMin: 0, about }), addresses);
  });

  test("pairs() reads what it writes, for distinct names", () => {
    const value = fc.string({ minLength: 1, maxLength: 30 }).filter((one) => !/[\0\n]/.test(one));
    const pair = fc.record({ name: anyName, value }, { noNullPrototype: true });
    const many = fc.uniqueArray(pair, { selector: (one) => one.name, maxLength: 5 });
    roundTrips(pairs({ fallback: [], about }), many);
  });

  test("boolean() and choice() read what they write", () => {
    roundTrips(boolean({ fallback: "true", about }), fc.boolean());
    roundTrips(choice(["a", "b"], { fallback: "a", about }), fc.constantFrom("a", "b"));
  });

  test("no kind throws, whatever the text", () => {
    const kinds: Setting<unknown>[] = [
      size,
      time,
      integer({ fallback: null, min: 0, max: 9, about }),
      address({ fallback: "a:1", portMin: 1, about }),
      url({ fallback: null, about }),
      path({ fallback: null, about }),
      pairs({ fallback: [], about }),
      directories({ fallback: [], about }),
      text({ fallback: "", about }),
    ];
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.constantFrom(...kinds), (given, kind) => {
        const reading = kind.read([given], "/base");
        assert.ok("value" in reading || reading.wrong === given);
      }),
      { numRuns: 1_000 },
    );
  });
});

describe("kinds", () => {
  test("bytes() wants a unit and reads fractions", () => {
    assert.equal(readOne(size, "8MiB"), 8 * MiB);
    assert.equal(readOne(size, "1.5KiB"), 1_536);
    for (const given of ["8", "8MB", "8 MiB", "-1B", "0B", "", "MiB", "1e3B", "8XB"]) {
      assert.deepEqual(readOne(size, given), wrong(given), given);
    }
  });

  test("bytes() takes no inherited property for a unit", () => {
    assert.deepEqual(readOne(size, "1toString"), wrong("1toString"));
    assert.deepEqual(readOne(size, "1constructor"), wrong("1constructor"));
  });

  test("duration() wants a unit and gives milliseconds", () => {
    assert.equal(readOne(time, "90s"), 90_000);
    assert.equal(readOne(time, "1.5min"), 90_000);
    assert.equal(readOne(time, "0ms"), 0);
    for (const given of ["90", "90m", "s", "1 h"])
      assert.deepEqual(readOne(time, given), wrong(given));
  });

  test("duration() names its limits in what it wants", () => {
    const limited = duration({ fallback: "1s", minMs: 100, maxMs: 600_000, about });
    assert.equal(limited.wants, "a number and one of ms, s, min, h, d, from 100ms to 10min");
    assert.deepEqual(readOne(limited, "99ms"), wrong("99ms"));
    assert.deepEqual(readOne(limited, "601s"), wrong("601s"));
  });

  test("integer() refuses signs, fractions, other bases and what is out of range", () => {
    const number = integer({ fallback: "1", min: 1, max: 64, about });
    for (const given of ["0", "65", "+1", "-1", "1.0", "0x1", "", "99999999999999999999"]) {
      assert.deepEqual(readOne(number, given), wrong(given), given);
    }
  });

  test("boolean() knows true and false and nothing else", () => {
    const flag = boolean({ fallback: "true", about });
    assert.equal(readOne(flag, "false"), false);
    for (const given of ["1", "yes", "TRUE", ""])
      assert.deepEqual(readOne(flag, given), wrong(given));
  });

  test("address() refuses port 0 only where nobody can listen", () => {
    const dial = address({ fallback: "a:1", portMin: 1, about });
    const listen = address({ fallback: "a:0", portMin: 0, about });
    assert.deepEqual(readOne(dial, "a:0"), wrong("a:0"));
    assert.deepEqual(readOne(listen, "[::1]:0"), { host: "::1", port: 0 });
    for (const given of ["a", ":1", "a:65536", "::1:80", "a b:1", "[a]:1", "http://a:1"]) {
      assert.deepEqual(readOne(listen, given), wrong(given), given);
    }
  });

  test("url() takes http and https only and keeps the text", () => {
    const link = url({ fallback: null, about });
    assert.equal(readOne(link, "http://h:1/health"), "http://h:1/health");
    for (const given of ["file:///etc/passwd", "h:1", "javascript:1", "http://", "http://a b"]) {
      assert.deepEqual(readOne(link, given), wrong(given), given);
    }
  });

  test("path() resolves against the base it is given", () => {
    const file = path({ fallback: null, about });
    assert.equal(readOne(file, "a/../b"), "/base/b");
    assert.equal(readOne(file, "/x/../y"), "/y");
    assert.deepEqual(readOne(file, "a\0b"), wrong("a\0b"));
  });

  test("directories() resolves each directory and refuses a name twice", () => {
    const roots = directories({ fallback: [], about });
    assert.deepEqual(readOne(roots, "a=x", "b=/y"), [
      { name: "a", value: "/base/x" },
      { name: "b", value: "/y" },
    ]);
    assert.deepEqual(readOne(roots, "a=x", "a=y"), wrong("a=y"));
    for (const given of ["a", "=x", "a=", "../a=x"])
      assert.deepEqual(readOne(roots, given), wrong(given));
  });

  test("texts() refuses an item that does not match", () => {
    const names = texts({ fallback: ["auto"], pattern: /^[a-z]+$/, wants: "names", about });
    assert.deepEqual(readOne(names, "triton", "B"), wrong("B"));
  });
});
