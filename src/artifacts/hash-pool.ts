// SPDX-License-Identifier: Apache-2.0
// Digests of large files on several threads at once: a checkpoint of 100 GB takes one thread half a
// minute. The threads start with the first file and end with the pool; hash-worker.ts is one of them.

import { Worker } from "node:worker_threads";
import type { Hex32 } from "../core/digest.ts";
import { chunkBytes } from "../core/pieces.ts";
import { type Code, type Details, RelightError } from "../errors.ts";
import { workerUrl } from "../platform/worker-url.ts";

/** A run that one thread hashes at a time: long enough that asking costs nothing, short enough to share out. */
const runBytes = 16 * chunkBytes;

export interface HashOrder {
  readonly id: number;
  /** Absolute; its last name is no link. */
  readonly path: string;
  readonly offset: number;
  readonly length: number;
}

export interface HashAnswer {
  readonly id: number;
  /** Null when the file ended before. */
  readonly chunks: readonly Hex32[] | null;
  readonly error?: { readonly code: Code; readonly message: string; readonly details: Details };
}

export interface HashedRange {
  readonly path: string;
  readonly size: number;
}

export interface HashPool extends AsyncDisposable {
  /**
   * The chunk digests of each file's first `size` bytes, in order; null for one that is shorter.
   * @param onHashed called with the bytes of each run that is done
   * @throws RelightError what the disk answered, or the signal's reason
   */
  hash(
    files: readonly HashedRange[],
    onHashed: (bytes: number) => void,
    signal: AbortSignal,
  ): Promise<(readonly Hex32[] | null)[]>;
}

export function startHashPool(threads: number): HashPool {
  const workers: HashThread[] = [];
  return {
    hash: async (files, onHashed, signal) => {
      const runs = files.flatMap((file, index) => runsOf(file, index));
      const done = files.map(() => [] as (readonly Hex32[] | null)[]);
      let next = 0;
      const work = async (thread: HashThread): Promise<void> => {
        for (let run = runs[next++]; run !== undefined; run = runs[next++]) {
          signal.throwIfAborted();
          const chunks = await thread.hash(run);
          const ofFile = done[run.index];
          if (ofFile !== undefined) ofFile[run.at] = chunks;
          onHashed(run.length);
        }
      };
      while (workers.length < Math.min(threads, runs.length)) workers.push(new HashThread());
      await Promise.all(workers.map(work));
      return done.map((each) => (each.includes(null) ? null : each.flatMap((run) => run ?? [])));
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(workers.splice(0).map((worker) => worker.end()));
    },
  };
}

interface Run extends Omit<HashOrder, "id"> {
  /** Position of the file, and of the run in it. */
  readonly index: number;
  readonly at: number;
}

function runsOf({ path, size }: HashedRange, index: number): Run[] {
  return Array.from({ length: Math.max(1, Math.ceil(size / runBytes)) }, (_, at) => ({
    path,
    index,
    at,
    offset: at * runBytes,
    length: Math.min(runBytes, size - at * runBytes),
  }));
}

class HashThread {
  readonly #worker = new Worker(workerUrl(new URL("./hash-worker.ts", import.meta.url)), {
    name: "hash",
  });
  readonly #waiting = new Map<number, PromiseWithResolvers<readonly Hex32[] | null>>();
  #lastId = 0;

  constructor() {
    this.#worker.unref();
    this.#worker.on("message", ({ id, chunks, error }: HashAnswer) => {
      const waiter = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) waiter?.resolve(chunks);
      else waiter?.reject(new RelightError(error.code, error.message, { details: error.details }));
    });
    this.#worker.on("error", (cause) => this.#fail("The hashing thread failed", cause));
    this.#worker.on("exit", () => this.#fail("The hashing thread ended"));
  }

  hash({ path, offset, length }: Run): Promise<readonly Hex32[] | null> {
    const id = ++this.#lastId;
    const waiter = Promise.withResolvers<readonly Hex32[] | null>();
    this.#waiting.set(id, waiter);
    this.#worker.postMessage({ id, path, offset, length } satisfies HashOrder);
    return waiter.promise;
  }

  async end(): Promise<void> {
    await this.#worker.terminate();
  }

  #fail(message: string, cause?: unknown): void {
    for (const waiter of this.#waiting.values())
      waiter.reject(new RelightError("internal", message, { cause }));
    this.#waiting.clear();
  }
}
