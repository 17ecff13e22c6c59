// SPDX-License-Identifier: Apache-2.0
// TorchInductor's cache: generated Python, shared objects, FX graphs, autotune results, and Triton's
// cache below it unless TRITON_CACHE_DIR moves that. Source: torch/_inductor/runtime/cache_dir_utils.py.

import path from "node:path";
import { type Family, isTemporaryName } from "../family.ts";
import { isRootedFile } from "../rebase.ts";

export const inductor: Family = {
  name: "inductor",
  about: "TorchInductor: generated code, FX graphs, AOTAutograd entries and autotune results.",
  variable: "TORCHINDUCTOR_CACHE_DIR",
  usedBy: ["torch"],
  root: (env) => {
    const user = env["USER"] ?? env["LOGNAME"];
    return (
      env["TORCHINDUCTOR_CACHE_DIR"] ??
      (user ? path.join(env["TMPDIR"] ?? "/tmp", `torchinductor_${user}`) : null)
    );
  },
  sourceType: 3,
  dependsOn: [
    "machine",
    "python",
    "torch",
    "cuda",
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
  isRooted: isRootedFile,
  unitOf: (file) =>
    /\.(so|cubin)$/.test(file) || /^(fxgraph|aotautograd)\//.test(file) ? file : null,
};
