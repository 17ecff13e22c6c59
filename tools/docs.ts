// SPDX-License-Identifier: Apache-2.0
// `npm run docs`: writes the generated pages of docs/. With --check it writes nothing and fails when one
// is stale.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { renderPages } from "./docs-pages.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const isCheck = process.argv.includes("--check");
const stale = Object.entries(renderPages()).filter(([path, text]) => readOr(path) !== text);

for (const [path, text] of stale) {
  if (isCheck) console.error(`error: ${path} is stale: run npm run docs`);
  else {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
    console.log(`wrote ${path}`);
  }
}
process.exitCode = isCheck && stale.length > 0 ? 1 : 0;

function readOr(path: string): string | null {
  try {
    return readFileSync(join(root, path), "utf8");
  } catch {
    // A page that is not there yet is as stale as one can be.
    return null;
  }
}
