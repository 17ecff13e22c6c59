// SPDX-License-Identifier: Apache-2.0
// Builds kernels/build/: machine code for Hopper and PTX for what comes after it.
// Needs nvcc (CUDA 12.8 or later) on the PATH or named by RELIGHT_NVCC: node kernels/build.ts

import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL(".", import.meta.url));
const nvcc = process.env["RELIGHT_NVCC"] ?? "nvcc";
const common = ["-std=c++17", "-O3", "-I", "include"];

function compile(source: string, target: readonly string[], output: string): void {
  execFileSync(nvcc, [...common, `src/${source}`, ...target, "-o", `build/${output}`], {
    cwd: root,
    stdio: "inherit",
  });
}

mkdirSync(`${root}build`, { recursive: true });
for (const name of ["relight", "moe"]) {
  const cubin = ["-cubin", "-arch=sm_90", "-Xptxas", "--warn-on-spills"];
  compile(`${name}.cu`, cubin, `${name}.sm_90.cubin`);
  compile(`${name}.cu`, ["-ptx", "-arch=compute_90"], `${name}.compute_90.ptx`);
}
