// SPDX-License-Identifier: Apache-2.0
// One thread of hash-pool.ts: digests of a run of chunks of one file.

import fs from "node:fs";
import { parentPort } from "node:worker_threads";
import { chunkBytes } from "../core/pieces.ts";
import { asRelightError, assert } from "../errors.ts";
import { fromNodeError } from "../platform/node-errors.ts";
import { hashChunks } from "./hash-file.ts";
import type { HashAnswer, HashOrder } from "./hash-pool.ts";

assert(parentPort !== null, "hash-worker.ts runs as a worker thread");
const port = parentPort;
const buffer = Buffer.allocUnsafeSlow(chunkBytes);
port.on("message", (order: HashOrder) => port.postMessage(answer(order)));

function answer({ id, path, offset, length }: HashOrder): HashAnswer {
  try {
    const handle = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW);
    try {
      return { id, chunks: hashChunks(handle, { offset, length }, buffer) };
    } finally {
      fs.closeSync(handle);
    }
  } catch (thrown) {
    const { code, message, details } = asRelightError(fromNodeError(thrown, `read "${path}"`));
    return { id, chunks: null, error: { code, message, details } };
  }
}
