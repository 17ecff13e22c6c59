// SPDX-License-Identifier: Apache-2.0
// Triton's cache: a folder per kernel with IR, cubin, metadata and a group file with absolute paths.
// Source: triton/runtime/cache.py (FileCacheManager), triton/knobs.py.

import path from "node:path";
import { type Family, folderUnit, isTemporaryName } from "../family.ts";
import { isGroupFile } from "../rebase-group.ts";

/** IR and binaries of its stages, metadata, launchers. Nothing that an interpreter would run. */
const suffixes = [
  ".source",
  ".ttir",
  ".ttgir",
  ".llir",
  ".ptx",
  ".cubin",
  ".amdgcn",
  ".hsaco",
  ".spv",
  ".json",
  ".so",
];

export const triton: Family = {
  name: "triton",
  about: "Triton kernels: IR, PTX, cubin and launchers.",
  variable: "TRITON_CACHE_DIR",
  usedBy: ["triton"],
  root: (env) => {
    const home = env["TRITON_HOME"] ?? env["HOME"];
    return env["TRITON_CACHE_DIR"] ?? (home ? path.join(home, ".triton", "cache") : null);
  },
  sourceType: 4,
  dependsOn: [
    "machine",
    "python",
    "torch",
    "triton",
    "triton_key",
    "gpu_arch",
    "model",
    "tp",
    "pp",
    "ep",
    "dtype",
    "quantization",
  ],
  isTemporary: isTemporaryName,
  suffixes,
  isRooted: isGroupFile,
  unitOf: (file) => folderUnit(file, [".cubin", ".so"]),
};
