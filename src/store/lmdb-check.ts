// SPDX-License-Identifier: Apache-2.0
// A program of its own: reads a whole LMDB directory once and ends with 0. LMDB maps its file into
// memory, so a damaged one can kill the process that reads it; better this one than the coordinator.

import { open } from "lmdb";

const [folder] = process.argv.slice(2);
const root = open({ path: folder ?? "", readOnly: true, maxDbs: 16 });
// The names first: opening a database while a cursor walks the names ends the process.
const names = Array.from(root.getKeys()).filter((name) => typeof name === "string");
for (const name of names) {
  const database = root.openDB({ name, encoding: "binary", keyEncoding: "binary" });
  for (const { value } of database.getRange()) if (value === undefined) process.exitCode = 1;
}
await root.close();
