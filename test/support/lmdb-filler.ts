// SPDX-License-Identifier: Apache-2.0
// A program: writes to an LMDB directory until the store refuses, then says what it refused with and
// what is still there. Run under a limit on the size of files, it stands for a full disk.

import { RelightError } from "../../src/errors.ts";
import { openLmdbStore } from "../../src/store/lmdb.ts";
import { sourceHead } from "./source-head.ts";

const { signal } = new AbortController();
const store = await openLmdbStore(process.argv[2] ?? "");
let count = 0;
let code = "none";
while (code === "none" && count < 1_000) {
  const head = sourceHead({ workerId: `worker-${count}` });
  const body = Buffer.alloc(20_000);
  try {
    await store.put({ head, body, replaces: null, when: "flushed" }, signal);
    count++;
  } catch (error) {
    code = error instanceof RelightError ? error.code : String(error);
  }
}
const listed = (await store.ofSource(sourceHead().sourceId, signal)).length;
console.log(JSON.stringify({ count, code, listed }));
await store[Symbol.asyncDispose]();
