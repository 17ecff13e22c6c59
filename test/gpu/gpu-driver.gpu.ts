// SPDX-License-Identifier: Apache-2.0
// The real driver against the contract that the fake passes in every run.

import { CudaDriver } from "../../src/gpu/cuda.ts";
import { gpuContract } from "../contracts/gpu.ts";
import { gpuMissing, nccl, ncclMissing } from "./gpu-present.ts";

gpuContract({
  backend: "cuda",
  skip: await gpuMissing(1),
  pairSkip: await ncclMissing(),
  open: () => new CudaDriver(nccl),
});
