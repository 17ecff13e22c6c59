// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { mountOf, parseMounts } from "./mounts.ts";

const text = [
  "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw",
  "23 22 0:5 / /data rw,noatime shared:7 - xfs /dev/sdb rw",
  "24 22 0:6 / /data/with\\040space rw,strictatime - tmpfs tmpfs rw",
  "not a mount",
].join("\n");

test("mountOf() takes the longest mount point above the path, whole names only", () => {
  const mounts = parseMounts(text);
  assert.equal(mounts.length, 3);
  assert.equal(mountOf("/data/x", mounts)?.type, "xfs");
  assert.equal(mountOf("/database", mounts)?.type, "ext4");
  assert.deepEqual(mountOf("/data/with space/x", mounts)?.options, ["rw", "strictatime"]);
});

test("mountOf() knows nothing when there is no table", () => {
  assert.equal(mountOf("/x", []), undefined);
});
