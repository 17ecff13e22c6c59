// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  beginChange,
  claim,
  drainMs,
  endChange,
  type Lease,
  type LeaseTable,
  openLeases,
  release,
  renew,
} from "./leases.ts";

const want = { generation: 1, ttlMs: 100 };

function granted(given: [LeaseTable, Lease | string]): [LeaseTable, Lease] {
  const [table, lease] = given;
  if (typeof lease === "string") assert.fail(lease);
  return [table, lease];
}

test("claim() admits so many readers and no more, and another once one let go", () => {
  let table = openLeases(2);
  const [one, first] = granted(claim(table, want, 0));
  [table] = granted(claim(one, want, 0));
  assert.equal(claim(table, want, 0)[1], "source_busy");
  granted(claim(release(table, first.id), want, 0));
  assert.deepEqual(release(table, 99), table);
});

test("a lease that has run out makes room, and does not come back", () => {
  const [table, lease] = granted(claim(openLeases(1), want, 0));
  assert.equal(claim(table, want, 99)[1], "source_busy");
  const [later] = granted(claim(table, want, 100));
  assert.equal(renew(later, { id: lease.id, ttlMs: 100 }, 101)[1], "source_gone");
});

test("renew() gives more time from now on", () => {
  const [table, lease] = granted(claim(openLeases(1), want, 0));
  const [, longer] = granted(renew(table, { id: lease.id, ttlMs: 500 }, 90));
  assert.equal(longer.expiresAtMs, 590);
});

test("a change refuses readers old and new, waits for those under way, and raises the generation", () => {
  const [held, lease] = granted(claim(openLeases(4), want, 0));
  const changing = beginChange(held);
  assert.equal(claim(changing, want, 1)[1], "generation_changed");
  assert.equal(claim(changing, { ...want, generation: 2 }, 1)[1], "generation_changed");
  assert.equal(renew(changing, { id: lease.id, ttlMs: 9 }, 1)[1], "generation_changed");
  assert.equal(drainMs(changing, 40), 60);
  assert.equal(drainMs(release(changing, lease.id), 40), 0);
  assert.equal(drainMs(changing, 100), 0);
  const changed = endChange(changing);
  assert.equal(claim(changed, want, 101)[1], "generation_changed");
  assert.equal(renew(changed, { id: lease.id, ttlMs: 9 }, 50)[1], "generation_changed");
  assert.equal(granted(claim(changed, { ...want, generation: 2 }, 101))[1].generation, 2);
});
