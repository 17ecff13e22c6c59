// SPDX-License-Identifier: Apache-2.0
// vLLM's torch.compile cache: one folder per configuration hash and rank, with AOT models beside.
// Source: vLLM docs/design/torch_compile.md; vllm/envs.py VLLM_CACHE_ROOT.

import path from "node:path";
import { type Family, isTemporaryName } from "../family.ts";
import { isRootedFile } from "../rebase.ts";

export const torchCompile: Family = {
  name: "torch-compile",
  about: "vLLM's torch.compile cache: compiled ranges, AOT models and their key factors.",
  variable: "VLLM_CACHE_ROOT",
  usedBy: [],
  root: (env) => {
    const base = env["VLLM_CACHE_ROOT"] ?? cacheHome(env);
    return base === null
      ? null
      : path.join(base, env["VLLM_CACHE_ROOT"] ? "" : "vllm", "torch_compile_cache");
  },
  sourceType: 3,
  dependsOn: [
    "machine",
    "framework",
    "framework_version",
    "torch",
    "cuda",
    "triton",
    "triton_key",
    "gpu_arch",
    "model",
    "revision",
    "tp",
    "pp",
    "ep",
    "dtype",
    "quantization",
    "compile_config",
  ],
  isTemporary: isTemporaryName,
  isRooted: isRootedFile,
  unitOf: (file) => (/\/artifact_[^/]*$|\/model$|\.cubin$|\.so$/.test(file) ? file : null),
};

/** $XDG_CACHE_HOME, or ~/.cache. */
export function cacheHome(env: Readonly<Record<string, string | undefined>>): string | null {
  if (env["XDG_CACHE_HOME"]) return env["XDG_CACHE_HOME"];
  return env["HOME"] ? path.join(env["HOME"], ".cache") : null;
}
