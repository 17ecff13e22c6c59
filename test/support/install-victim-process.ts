// SPDX-License-Identifier: Apache-2.0
// A program: installs an artifact into a cache, and kills itself with SIGKILL before the STEP-th change of
// the disk (0: never). The artifact is what a source has, verified and rebased like in a real start.
// Usage: install-victim-process.ts SOURCE TARGET STEP. Prints how many changes it made.

import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import path from "node:path";
import {
  createStaging,
  installStaged,
  missingFiles,
  openRoot,
  recoverRoot,
} from "../../src/artifacts/install.ts";
import { triton } from "../../src/artifacts/kinds/triton.ts";
import { seal } from "../../src/artifacts/seal.ts";

const [source = "", target = "", step = "0"] = process.argv.slice(2);
let changes = 0;

const changing = [
  "mkdirSync",
  "writeFileSync",
  "renameSync",
  "linkSync",
  "unlinkSync",
  "rmSync",
  "chmodSync",
  "utimesSync",
  "fsyncSync",
  "writeSync",
] as const;

const settledBeforeMs = Date.now() + 60_000;
const sealed = seal({ root: source, family: triton, excluded: [], settledBeforeMs });
if (sealed === null) throw new Error("there is nothing to install");
const root = openRoot(target);
recoverRoot(root, () => true);
const { manifest } = sealed;
const files = missingFiles(root, manifest);
countChanges();
const staging = createStaging(root, files);
for (const { entry, portable } of sealed.files) {
  const staged = path.join(staging.tree, entry.path);
  fs.writeFileSync(staged, portable ?? fs.readFileSync(path.join(source, entry.path)));
}
installStaged({ root, staging, manifest, files, sources: [], nowMs: Date.now() });
console.log(changes);

function countChanges(): void {
  for (const name of changing) {
    const real: (...words: never[]) => unknown = fs[name];
    const counted = (...words: never[]) => {
      if (++changes === Number(step)) process.kill(process.pid, "SIGKILL");
      return real.apply(fs, words);
    };
    Object.assign(fs, { [name]: counted });
  }
  syncBuiltinESMExports();
}
