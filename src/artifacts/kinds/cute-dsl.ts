// SPDX-License-Identifier: Apache-2.0
// CuTe DSL's cache of compiled modules. Source: NVIDIA cutlass, python/CuTeDSL environment manager.

import path from "node:path";
import { type Family, isTemporaryName } from "../family.ts";

export const cuteDsl: Family = {
  name: "cute-dsl",
  about: "CuTe DSL modules.",
  variable: "CUTE_DSL_CACHE_DIR",
  usedBy: ["cutlass_dsl"],
  root: (env) => {
    const user = env["USER"] ?? env["LOGNAME"];
    return (
      env["CUTE_DSL_CACHE_DIR"] ??
      (user ? path.join(env["TMPDIR"] ?? "/tmp", user, "cutlass_python_cache") : null)
    );
  },
  sourceType: 7,
  dependsOn: ["machine", "python", "torch", "cuda", "gpu_arch", "cutlass_dsl", "model", "tp"],
  isTemporary: isTemporaryName,
  isRooted: () => false,
  unitOf: (file) => file,
};
