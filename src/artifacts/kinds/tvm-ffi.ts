// SPDX-License-Identifier: Apache-2.0
// TVM-FFI's cache of inline-built modules. Source: apache/tvm-ffi, tvm_ffi.cpp TVM_FFI_CACHE_DIR.

import path from "node:path";
import { type Family, folderUnit, isTemporaryName } from "../family.ts";
import { cacheHome } from "./torch-compile.ts";

export const tvmFfi: Family = {
  name: "tvm-ffi",
  about: "TVM-FFI modules built at first use.",
  variable: "TVM_FFI_CACHE_DIR",
  usedBy: ["tvm_ffi"],
  root: (env) => {
    const base = cacheHome(env);
    return env["TVM_FFI_CACHE_DIR"] ?? (base === null ? null : path.join(base, "tvm-ffi"));
  },
  sourceType: 9,
  dependsOn: ["machine", "python", "torch", "cuda", "gpu_arch", "tvm_ffi", "model", "tp"],
  isTemporary: isTemporaryName,
  isRooted: () => false,
  unitOf: (file) => folderUnit(file, [".so"]),
};
