// SPDX-License-Identifier: Apache-2.0
// `npm run build`: src/ to dist/ as plain JavaScript, for the package. Node refuses to strip types below
// node_modules, so the package cannot ship the source. dist/ mirrors src/ at the same depth, so that a
// URL relative to a module finds python/ and kernels/ from both.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const compiler = join(root, "node_modules/typescript/bin/tsc");

rmSync(join(root, "dist"), { recursive: true, force: true });
compile();
copyOthers();

function compile(): void {
  try {
    execFileSync(process.execPath, [compiler, "-p", "tsconfig.build.json"], {
      cwd: root,
      stdio: "inherit",
    });
  } catch {
    // The compiler has said what is wrong.
    process.exit(1);
  }
}

/** What is no TypeScript but may be read at run time: protocol definitions and the like. */
function copyOthers(): void {
  const entries = readdirSync(join(root, "src"), { recursive: true, withFileTypes: true });
  for (const entry of entries.filter((one) => one.isFile() && !one.name.endsWith(".ts"))) {
    const from = join(entry.parentPath, entry.name);
    const to = join(root, "dist", relative(join(root, "src"), from));
    mkdirSync(dirname(to), { recursive: true });
    copyFileSync(from, to);
  }
}
