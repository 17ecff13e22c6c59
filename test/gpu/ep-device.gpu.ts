// SPDX-License-Identifier: Apache-2.0
// The exchange through TypeScript on a GPU, against the contract that the fake passes in every run.

import { readFileSync } from "node:fs";
import { CudaDriver } from "../../src/gpu/cuda.ts";
import { gpuEpContract } from "../contracts/gpu-ep.ts";
import { gpuMissing } from "./gpu-present.ts";

gpuEpContract({
  name: "cuda",
  skip: await gpuMissing(1),
  open: () => new CudaDriver(),
  image: () => readFileSync(new URL("../../kernels/build/relight.sm_90.cubin", import.meta.url)),
});
