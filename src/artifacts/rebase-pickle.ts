// SPDX-License-Identifier: Apache-2.0
// TorchInductor's FX graph entries name their cache's root. An entry is a pickle whose statically
// launched kernels carry the absolute path of their source and of their autotune result
// (CachingAutotuner.filename, AutotuneCache.local_cache, PyTorch 2.11). Under another root the engine
// looks for the result, and writes it, in the source's folder. docs/adr/0004-rebase.md has the proof.

import { RelightError } from "../errors.ts";
import { unsafePath } from "./paths.ts";
import { changeStrings } from "./pickle.ts";
import { rootToken } from "./rebase-token.ts";

/** fxgraph/<two of the key>/<key>/<digest of the entry>, in a cache or in one folder of a cache. */
const entryPath = /^(?<cache>(?:[^/]+\/)*)fxgraph\/[a-z0-9]{2}\/[a-z0-9]+\/[a-z0-9]+$/;
/** What such an entry names below its cache: a kernel's source or its autotune result. */
const namedPath = /^[a-z0-9]{2}\/[a-z0-9]+\.(?:py|best_config)$/;

const tokenBytes = Buffer.from(rootToken);

export function isGraphEntry(relativePath: string): boolean {
  return entryPath.test(relativePath);
}

/**
 * The portable form of the entry at `relativePath` below `root`; null when it names nothing there, or is
 * a pickle that we do not understand: it then travels as it is.
 */
export function graphToPortable(pickle: Buffer, at: { root: string; path: string }): Buffer | null {
  const cache = cacheOf(at.path);
  const prefix = Buffer.from(`${at.root}/${cache}`);
  try {
    const portable = changeStrings(pickle, (text) => {
      if (startsWith(text, tokenBytes)) throw ambiguous(at.path);
      if (!startsWith(text, prefix)) return null;
      const named = text.toString("utf8", prefix.length);
      return namedPath.test(named) ? Buffer.from(`${rootToken}${cache}${named}`) : null;
    });
    return portable === pickle ? null : portable;
  } catch (thrown) {
    if (thrown instanceof RelightError && thrown.code === "structure_invalid") return null;
    throw thrown;
  }
}

/**
 * The entry for `root` from its portable form. It may name files that nobody has: the engine writes them.
 * @throws RelightError `structure_invalid`, or `path_unsafe` when it names anything but a kernel's files
 * in its own cache.
 */
export function graphFromPortable(pickle: Buffer, at: { root: string; path: string }): Buffer {
  const cache = cacheOf(at.path);
  return changeStrings(pickle, (text) => {
    if (!startsWith(text, tokenBytes)) return null;
    const relative = text.toString("utf8", rootToken.length);
    const isNamed = relative.startsWith(cache) && namedPath.test(relative.slice(cache.length));
    if (!isNamed || unsafePath(relative) !== null) {
      throw new RelightError(
        "path_unsafe",
        `Cannot install "${at.path}": it names ${JSON.stringify(relative.slice(0, 200))}, not a file of its cache`,
      );
    }
    return Buffer.from(`${at.root}/${relative}`);
  });
}

function cacheOf(relativePath: string): string {
  return entryPath.exec(relativePath)?.groups?.["cache"] ?? "";
}

function startsWith(text: Buffer, prefix: Buffer): boolean {
  return text.length >= prefix.length && prefix.equals(text.subarray(0, prefix.length));
}

function ambiguous(relativePath: string): RelightError {
  return new RelightError(
    "structure_invalid",
    `Cannot make "${relativePath}" portable: it holds our own token already`,
  );
}
