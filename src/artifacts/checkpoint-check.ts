// SPDX-License-Identifier: Apache-2.0
// Whether the files of a checkpoint make one: every file has the form of its name, there are weights,
// and what an index lists is there. The same for what is offered and for what is installed.

import { RelightError } from "../errors.ts";
import { isWeights } from "./kinds/checkpoint.ts";
import { isIndex, parseIndex, weightMap } from "./kinds/checkpoint-order.ts";
import { structureProblem } from "./structure.ts";

export interface CheckpointFiles {
  /** What an error names it by. */
  readonly root: string;
  /** Relative. */
  readonly paths: readonly string[];
  /** Where a file's bytes lie: absolute, its last name no link. */
  locate(path: string): string;
  /** The bytes of a small file. */
  read(path: string): Buffer | null;
}

/** @throws RelightError `structure_invalid` naming the first thing that is wrong, or what the disk answered. */
export function checkCheckpoint(files: CheckpointFiles): void {
  const { root, paths } = files;
  const wrong = (reason: string): RelightError =>
    new RelightError("structure_invalid", `Cannot use checkpoint "${root}": ${reason}`);
  if (!paths.some(isWeights)) throw wrong("it has no weights");
  for (const path of paths) {
    const problem = structureProblem(files.locate(path), path);
    if (problem !== null) throw wrong(`"${path}": ${problem}`);
    if (isIndex(path) && parseIndex(files.read(path) ?? Buffer.alloc(0)) === null)
      throw wrong(`"${path}" is no index of weights`);
  }
  const there = new Set(paths);
  for (const [tensor, file] of weightMap(paths, files.read)) {
    if (!there.has(file))
      throw wrong(
        `its index says that ${JSON.stringify(tensor)} is in "${file}", which is not there`,
      );
  }
}
