// SPDX-License-Identifier: Apache-2.0
// A model's checkpoint as it comes from a hub: safetensors, their index, configuration and tokenizer.
// Its files are data, so that only what the engine would execute is left out unless it is asked for.

import path from "node:path";
import type { Family, WholeRules } from "../family.ts";
import { firstFiles, type RankPlace } from "./checkpoint-order.ts";

export const checkpointFamilyName = "checkpoint";

/** What can be sent to a worker thread and makes the same family there. */
export interface CheckpointOptions {
  /** Absolute. */
  readonly folder: string;
  /** Also files that an engine executes: pickles and Python. */
  readonly allowsCode: boolean;
  /** Whose files come first; null for no one's. */
  readonly rank: RankPlace | null;
}

/** Formats that unpickle, and sources and objects that are loaded. */
const pickles = /\.(bin|pt|pth|ckpt|pkl|pickle|joblib|pdparams)$/i;
const programs = /\.(py|pyc|so|sh)$/i;

export function checkpointFamily({ folder, allowsCode, rank }: CheckpointOptions): Family {
  const root = path.resolve(folder);
  const whole: WholeRules = {
    allowsCode,
    linkRoot: hubFolder,
    refuse: (file) => (allowsCode ? null : codeIn(file)),
    isEarly: (file) => !isWeights(file),
    order: (paths, read) => (rank === null ? [] : firstFiles(paths, read, rank)),
  };
  return {
    name: checkpointFamilyName,
    about: "A model's weights and configuration, as files.",
    variable: null,
    usedBy: [],
    root: () => root,
    sourceType: 0,
    dependsOn: ["model", "revision"],
    isTemporary: isHidden,
    isRooted: () => false,
    unitOf: () => null,
    whole,
  };
}

export function isWeights(file: string): boolean {
  return /\.(safetensors|gguf)$/i.test(file) || pickles.test(file);
}

/**
 * What a folder of the Hugging Face cache says of itself: `models--ORG--NAME/snapshots/REVISION`; null
 * for any other folder.
 */
export function hubSnapshot(
  folder: string,
): { readonly model: string; readonly revision: string; readonly repository: string } | null {
  const match = /^(.*\/models--([^/]+))\/snapshots\/([^/]+)$/.exec(path.resolve(folder));
  const [, repository, name, revision] = match ?? [];
  if (repository === undefined || name === undefined || revision === undefined) return null;
  return { model: name.split("--").join("/"), revision, repository };
}

/** A snapshot's files are links into its repository's `blobs/`; elsewhere a link stays inside its folder. */
function hubFolder(root: string): string {
  return hubSnapshot(root)?.repository ?? root;
}

/** Why an engine might execute the file; null for data. */
export function codeIn(file: string): string | null {
  if (pickles.test(file)) return "a pickle is code";
  return programs.test(file) ? "it is code" : null;
}

/** What downloaders and version control keep beside the files, and downloads under way. */
function isHidden(file: string): boolean {
  return file
    .split("/")
    .some((name) => name.startsWith(".") || /\.(incomplete|tmp|part|lock)$/.test(name));
}
