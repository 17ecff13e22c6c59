// SPDX-License-Identifier: Apache-2.0
// DeepGEMM's JIT cache. Its keys hash compiler flags that hold the package's install path and the
// NVCC version (csrc/jit/compiler.hpp; vLLM #48190: 0 of 41 hits at another path), so both are part of
// the identity: at another path the cache is refused, with that as the reason, rather than inert.

import path from "node:path";
import { type Family, folderUnit, isTemporaryName } from "../family.ts";

/** Source and binary of each kernel, and what its dump settings add. */
const suffixes = [".cu", ".cubin", ".ptx", ".sass"];

export const deepGemm: Family = {
  name: "deep-gemm",
  about: "DeepGEMM kernels, bound to the package's path and the NVCC version.",
  variable: "DG_JIT_CACHE_DIR",
  usedBy: ["deep_gemm"],
  root: (env) =>
    env["DG_JIT_CACHE_DIR"] ?? (env["HOME"] ? path.join(env["HOME"], ".deep_gemm") : null),
  sourceType: 5,
  dependsOn: [
    "machine",
    "torch",
    "cuda",
    "nvcc",
    "gpu_arch",
    "deep_gemm",
    "deep_gemm_path",
    "model",
    "tp",
    "ep",
  ],
  isTemporary: (file) => isTemporaryName(file) || file.startsWith("tmp/"),
  suffixes,
  isRooted: () => false,
  unitOf: (file) => folderUnit(file, [".cubin"]),
};
