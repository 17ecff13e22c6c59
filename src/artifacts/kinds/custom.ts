// SPDX-License-Identifier: Apache-2.0
// Any other cache, given as NAME=DIR. Nothing is known of its keys, so everything that is known of
// the replica is part of its identity, and the user adds what else must agree.

import path from "node:path";
import { RelightError } from "../../errors.ts";
import { type FactName, type Family, factNames, isTemporaryName } from "../family.ts";
import { isRootedFile } from "../rebase.ts";

/** Of other families: where their packages and caches lie says nothing of this one. */
const pathFacts: readonly FactName[] = ["deep_gemm_path", "flashinfer_path", "flashinfer_root"];
/** What compilers leave beside their output; everything else counts as compiled. */
const besides = /\.(c|cc|cpp|cu|cuh|h|hpp|py|txt|log|json|d|o|s|ptx|ll|ttir|ttgir|llir)$/;

/** @throws RelightError `config_invalid` for a name that no family may have. */
export function customFamily(name: string, folder: string): Family {
  if (!/^[a-z0-9][a-z0-9._-]{0,63}$/.test(name)) {
    throw new RelightError(
      "config_invalid",
      `Cannot name a cache "${name}": want lower-case letters, digits, ".", "_" or "-"`,
    );
  }
  const root = path.resolve(folder);
  return {
    name,
    about: "A cache given by hand.",
    variable: null,
    usedBy: [],
    root: () => root,
    sourceType: 3,
    dependsOn: factNames.filter((fact) => !pathFacts.includes(fact)),
    isTemporary: isTemporaryName,
    isRooted: isRootedFile,
    unitOf: (file) => (besides.test(file) ? null : file),
  };
}
