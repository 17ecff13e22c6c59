// SPDX-License-Identifier: Apache-2.0
// TileLang's kernel cache. Source: tilelang/env.py TILELANG_CACHE_DIR.

import path from "node:path";
import { type Family, folderUnit, isTemporaryName } from "../family.ts";

export const tilelang: Family = {
  name: "tilelang",
  about: "TileLang kernels.",
  variable: "TILELANG_CACHE_DIR",
  usedBy: ["tilelang"],
  root: (env) =>
    env["TILELANG_CACHE_DIR"] ??
    (env["HOME"] ? path.join(env["HOME"], ".tilelang", "cache") : null),
  sourceType: 6,
  dependsOn: ["machine", "python", "torch", "cuda", "gpu_arch", "tilelang", "model", "tp"],
  isTemporary: isTemporaryName,
  isRooted: () => false,
  unitOf: (file) => folderUnit(file, [".so", ".cubin"]),
};
