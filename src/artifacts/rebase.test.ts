// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { fromPortable, isRootedFile, toPortable } from "./rebase.ts";

const source = { root: "/home/a/.cache/inductor", path: "fxgraph/fp/ffpmzz/b4gstoz" };
const target = { root: "/var/b", path: source.path };
const none = new Set<string>();

describe("isRootedFile()", () => {
  test("knows Triton's groups and Inductor's graph entries, in a cache or in a folder of one", () => {
    for (const path of [
      "KEY/__grp__kernel.json",
      "fxgraph/fp/ffpmzz/b4gstoz",
      "0123abcdef/rank_0_0/inductor_cache/fxgraph/fp/ffpmzz/b4gstoz",
    ])
      assert.ok(isRootedFile(path), path);
  });

  test("leaves every other file alone", () => {
    for (const path of [
      "KEY/kernel.json",
      "KEY/__grp__kernel.txt",
      "aotautograd/a1/a1b2/entry",
      "fxgraph/fp/ffpmzz/b4gstoz.tmp",
      "fxgraph/ffpmzz/b4gstoz",
      "wt/cwtmfy.py",
    ])
      assert.ok(!isRootedFile(path), path);
  });
});

describe("a graph entry", () => {
  const kernel = "wt/cwtmfy.py";
  const tuned = "wt/f5fe083f.best_config";
  const entry = (root: string) =>
    pickle(
      `${root}/${kernel}`,
      "triton_mm",
      `${root}/${tuned}`,
      `# kernel path: ${root}/${kernel}`,
    );

  test("names the target's root for a kernel's source and its autotune result, not in other text", () => {
    const portable = toPortable(entry(source.root), source);
    assert.ok(portable);
    assert.deepEqual(
      fromPortable(portable, target, none),
      pickle(
        `${target.root}/${kernel}`,
        "triton_mm",
        `${target.root}/${tuned}`,
        `# kernel path: ${source.root}/${kernel}`,
      ),
    );
  });

  test("has one portable form wherever it lies, so that two replicas seal the same artifact", () => {
    const both = [source, target].map((at) =>
      toPortable(pickle(`${at.root}/${kernel}`, `${at.root}/${tuned}`), at),
    );
    assert.ok(both[0]);
    assert.deepEqual(both[0], both[1]);
  });

  test("in a folder of a cache names files of that folder only", () => {
    const at = { root: "/r", path: "abc/rank_0_0/inductor_cache/fxgraph/fp/ffpmzz/b4gstoz" };
    const own = "/r/abc/rank_0_0/inductor_cache/wt/c.py";
    const other = "/r/other/wt/c.py";
    const portable = toPortable(pickle(own, other), at);
    assert.deepEqual(portable, pickle("relight-root:/abc/rank_0_0/inductor_cache/wt/c.py", other));
  });

  for (const [what, bytes] of [
    ["names another root", pickle("/somewhere/else/wt/c.py")],
    ["names a file of no known kind below its root", pickle(`${source.root}/wt/libc.so`)],
    ["names what leaves its root", pickle(`${source.root}/wt/../../x.py`)],
    ["is no pickle", Buffer.from("fx")],
    ["is a damaged pickle", pickle(`${source.root}/wt/c.py`).subarray(0, 20)],
    ["holds our own token already", pickle("relight-root:/wt/c.py", `${source.root}/wt/c.py`)],
  ] as const) {
    test(`that ${what} travels as it is`, () => assert.equal(toPortable(bytes, source), null));
  }

  for (const named of [
    "../../etc/cron.d/x.py",
    "wt/../../../x.py",
    "/etc/x.py",
    "wt/x.so",
    "wt/x.py\u0000",
    ".relight/receipts/x.py",
    "other/wt/c.py",
    "",
  ]) {
    test(`is refused when its portable form names ${JSON.stringify(named)}`, () => {
      assert.throws(() => fromPortable(pickle(`relight-root:/${named}`), target, none), {
        code: "path_unsafe",
      });
    });
  }

  test("is refused when its portable form is damaged", () => {
    const portable = pickle("relight-root:/wt/c.py");
    assert.throws(() => fromPortable(portable.subarray(0, -3), target, none), {
      code: "structure_invalid",
    });
  });
});

describe("a group", () => {
  const at = { root: "/home/a/.triton", path: "KEY/__grp__kernel.json" };
  const members = new Set(["KEY/kernel.cubin"]);

  test("lists the members under the target's root", () => {
    const portable = toPortable(group("/home/a/.triton/KEY/kernel.cubin"), at);
    assert.ok(portable);
    assert.deepEqual(
      fromPortable(portable, { ...at, root: "/var/b" }, members),
      group("/var/b/KEY/kernel.cubin"),
    );
  });

  test("that lists a file outside its root is not sealed", () => {
    for (const outside of ["/etc/passwd", "/home/a/.triton/../x", "KEY/kernel.cubin"])
      assert.throws(() => toPortable(group(outside), at), { code: "path_unsafe" }, outside);
  });

  test("that lists anything but a file of its artifact is not installed", () => {
    for (const named of [
      "/etc/passwd",
      "relight-root:/KEY/other",
      "relight-root:/../KEY/kernel.cubin",
    ])
      assert.throws(() => fromPortable(group(named), at, members), { code: "path_unsafe" }, named);
  });

  test("is refused when a pickle comes under its name", () => {
    assert.throws(() => fromPortable(pickle("relight-root:/KEY/kernel.cubin"), at, members), {
      code: "structure_invalid",
    });
  });
});

function group(child: string): Buffer {
  return Buffer.from(JSON.stringify({ child_paths: { "kernel.cubin": child } }));
}

/** A list of strings as CPython's protocol 4 writes it, in one frame. */
function pickle(...strings: readonly string[]): Buffer {
  const items = strings.flatMap((value) => {
    const bytes = Buffer.from(value);
    return [Buffer.from([0x8c, bytes.length]), bytes, Buffer.from([0x94])];
  });
  const body = Buffer.concat([Buffer.from("]\x94(", "latin1"), ...items, Buffer.from("e.")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(body.length));
  return Buffer.concat([Buffer.from([0x80, 4, 0x95]), length, body]);
}
