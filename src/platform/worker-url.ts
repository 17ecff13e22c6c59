// SPDX-License-Identifier: Apache-2.0
// Worker threads are files of their own: `x-worker.ts` in the source, `x-worker.js` in the package.

import { assert } from "../errors.ts";

/**
 * Where the worker that the source calls `written` is in this installation:
 * `new Worker(workerUrl(new URL("./x-worker.ts", import.meta.url)))`.
 */
export function workerUrl(written: URL): URL {
  assert(written.pathname.endsWith("-worker.ts"), `a worker's file ends in -worker.ts: ${written}`);
  // This file was built together with the worker, so that its own ending tells the worker's.
  const isBuilt = import.meta.url.endsWith(".js");
  return isBuilt ? new URL(written.href.replace(/\.ts$/, ".js")) : written;
}
