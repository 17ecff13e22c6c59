// SPDX-License-Identifier: Apache-2.0
// FlashInfer: JIT-built operators (shared objects, keyed by version and architecture), and the
// autotuner's results as vLLM keeps them. Source: flashinfer/jit/env.py, core.py, cpp_ext.py; vLLM's
// kernel warm-up. Operators are built by ninja at every use, which compares modification times with those
// in its own log and names everything by absolute path: times travel, and the folders of the cache and of
// the package are part of the identity, so that at another path the cache is refused rather than inert.

import path from "node:path";
import { type Family, isTemporaryName } from "../family.ts";
import { cacheHome } from "./torch-compile.ts";

export const flashinferJit: Family = {
  name: "flashinfer-jit",
  about: "FlashInfer operators built at first use.",
  variable: "FLASHINFER_WORKSPACE_BASE",
  usedBy: ["flashinfer"],
  root: (env) => {
    const base = env["FLASHINFER_WORKSPACE_BASE"] ?? env["HOME"];
    return base ? path.join(base, ".cache", "flashinfer") : null;
  },
  sourceType: 8,
  dependsOn: [
    "machine",
    "python",
    "torch",
    "cuda",
    "nvcc",
    "gpu_arch",
    "flashinfer",
    "flashinfer_path",
    "flashinfer_root",
    "model",
    "tp",
    "dtype",
    "quantization",
  ],
  // A log that every process writes to would be a delta every few seconds.
  isTemporary: (file) => isTemporaryName(file) || file.endsWith(".log"),
  keepsTimes: true,
  isRooted: () => false,
  unitOf: (file) => (file.endsWith(".so") ? file : null),
};

export const flashinferAutotune: Family = {
  name: "flashinfer-autotune",
  about: "FlashInfer's autotuner: chosen configurations, as JSON.",
  variable: "VLLM_CACHE_ROOT",
  usedBy: [],
  root: (env) => {
    const base = env["VLLM_CACHE_ROOT"] ?? cacheHome(env);
    return base === null
      ? null
      : path.join(base, env["VLLM_CACHE_ROOT"] ? "" : "vllm", "flashinfer_autotune_cache");
  },
  sourceType: 8,
  dependsOn: [
    "machine",
    "framework",
    "framework_version",
    "torch",
    "cuda",
    "gpu_arch",
    "flashinfer",
    "model",
    "tp",
    "ep",
    "dtype",
    "quantization",
  ],
  isTemporary: isTemporaryName,
  suffixes: [".json"],
  isRooted: () => false,
  unitOf: (file) => (file.endsWith(".json") ? file : null),
};
