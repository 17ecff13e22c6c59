// SPDX-License-Identifier: Apache-2.0
// The two things that are moved: four large files, and a tree like a JIT cache's. Bytes that do not
// compress, the same in every run.

import fs from "node:fs";
import path from "node:path";
import { KiB, MiB } from "../src/core/units.ts";
import { generator, randomBytes } from "../test/support/tree.ts";

export interface Tree {
  readonly root: string;
  readonly files: number;
  readonly bytes: number;
}

/** 1 GiB in 4 files. */
export function makeBig(root: string): Tree {
  const random = generator(11);
  fs.mkdirSync(root, { recursive: true });
  for (let file = 0; file < 4; file++) {
    const handle = fs.openSync(path.join(root, `f${file}`), "w");
    for (let part = 0; part < 64; part++) fs.writeSync(handle, randomBytes(4 * MiB, random));
    fs.closeSync(handle);
  }
  return { root, files: 4, bytes: 1_024 * MiB };
}

/** 20,000 files of 1 to 200 KB in 1,000 folders, most of them small: about 656 MiB. */
export function makeTree(root: string): Tree {
  return addFiles(root, { first: 0, count: 20_000 });
}

export function addFiles(root: string, { first, count }: { first: number; count: number }): Tree {
  const random = generator(first + 1);
  const pool = randomBytes(8 * MiB, random);
  let bytes = 0;
  for (let file = first; file < first + count; file++) {
    const size = Math.floor(KiB * 200 ** ((random() / 2 ** 32) ** 1.11));
    const from = random() % (pool.length - size);
    const content = Buffer.from(pool.subarray(from, from + size));
    // A compiled kernel is an ELF object, and the installer looks.
    content.write("\x7fELF", "latin1");
    content.writeUInt32LE(file, 16);
    const folder = path.join(root, `${file % 40}`, `kernel-${file % 1_000}`);
    fs.mkdirSync(folder, { recursive: true });
    fs.writeFileSync(path.join(folder, `part-${file}.cubin`), content);
    bytes += size;
  }
  return { root, files: count, bytes };
}
