// SPDX-License-Identifier: Apache-2.0
// What a source says about an artifact: manifest, piece sets and ranges, Triton's group files.

import assert from "node:assert/strict";
import { posix } from "node:path";
import { decodeManifest, encodeManifest, listPieces } from "../../src/artifacts/manifest.ts";
import { fromPortable, toPortable } from "../../src/artifacts/rebase.ts";
import { blake3Hex, wholeDigest } from "../../src/core/digest.ts";
import { formatRanges, PieceSet, parseRanges } from "../../src/core/pieces.ts";
import type { FuzzTarget } from "../support/fuzz.ts";

const digest = wholeDigest(blake3Hex(Buffer.from("x")));
const file = { mode: 0o644, size: 1, form: "plain", digest, chunks: [] } as const;
const manifest = encodeManifest({
  family: "triton",
  files: [
    { ...file, path: "a/kernel.cubin" },
    { ...file, path: "a/kernel.json" },
    { ...file, path: "b", mode: 0o755 },
  ],
});

const root = "/home/me/.triton";
const members = new Set(["a/kernel.cubin", "a/kernel.json"]);
const children = Object.fromEntries(
  [...members].map((path) => [posix.basename(path), `${root}/${path}`]),
);
const groupAt = { root, path: "a/__grp__kernel.json" };
const group = toPortable(Buffer.from(JSON.stringify({ child_paths: children })), groupAt);
assert.ok(group);

/** CPython's `pickle.dumps(["relight-root:/ab/kernel.py", b"x", 7], protocol=4)`. */
const graph = Buffer.from(
  "gASVKAAAAAAAAABdlCiMGnJlbGlnaHQtcm9vdDovYWIva2VybmVsLnB5lEMBeJRLB2Uu",
  "base64",
);
const graphAt = { root, path: "fxgraph/fp/ffpm/b4gs" };

const size = 1_000;

export const targets: readonly FuzzTarget[] = [
  {
    name: "decodeManifest()",
    seeds: [manifest.bytes],
    run: (given) => {
      const bytes = Buffer.from(given);
      const decoded = decodeManifest(bytes, { artifactId: blake3Hex(bytes) });
      for (const { path } of decoded.files) {
        const landing = posix.resolve(root, path);
        assert.equal(landing, `${root}/${path}`, "a path stays as it is written, below the root");
      }
      assert.ok(encodeManifest(decoded).bytes.equals(bytes), "equal manifests have equal bytes");
      assert.ok(listPieces(decoded).length >= decoded.files.length);
    },
  },
  {
    name: "fromPortable() of a group",
    seeds: [group, '{"child_paths":{}}'],
    run: (bytes) => {
      const installed = JSON.parse(
        fromPortable(Buffer.from(bytes), groupAt, members).toString("utf8"),
      );
      for (const path of Object.values<string>(installed.child_paths)) {
        assert.ok(members.has(posix.relative(root, path)), path);
      }
    },
  },
  {
    name: "fromPortable() of a graph entry",
    seeds: [graph],
    run: (bytes) => {
      const installed = fromPortable(Buffer.from(bytes), graphAt, members);
      for (const [path] of installed.toString("latin1").matchAll(/\/home\/me\/\.triton\/[^\n]*/g))
        assert.match(path, /^\/home\/me\/\.triton\/[a-z0-9]{2}\/[a-z0-9]+\.(py|best_config)/);
    },
  },
  {
    name: "parseRanges()",
    seeds: ["0-4,7,9-12", "0", "999"],
    run: (bytes) => {
      const pieces = parseRanges(Buffer.from(bytes).toString("latin1"), { size, countMax: 100 });
      assert.ok(pieces.length >= 1 && pieces.length <= 100);
      assert.ok(pieces.every((piece) => piece >= 0 && piece < size));
      assert.deepEqual(parseRanges(formatRanges(pieces), { size, countMax: 100 }), pieces);
    },
  },
  {
    name: "PieceSet.fromBytes()",
    seeds: [new PieceSet(size).toBytes(), new Uint8Array(size / 8).fill(0xff)],
    run: (bytes) => {
      const set = PieceSet.fromBytes(size, bytes);
      assert.ok(set.count() <= size);
      assert.deepEqual(set.toBytes(), bytes);
    },
  },
];
