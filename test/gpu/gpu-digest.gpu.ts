// SPDX-License-Identifier: Apache-2.0
// The digest kernel as it is built, against the reference, bit by bit.

import { readFileSync } from "node:fs";
import { CudaDriver } from "../../src/gpu/cuda.ts";
import { gpuDigestContract } from "../contracts/gpu-digest.ts";
import { gpuMissing } from "./gpu-present.ts";

gpuDigestContract({
  name: "cuda",
  skip: await gpuMissing(1),
  image: () => readFileSync(new URL("../../kernels/build/relight.sm_90.cubin", import.meta.url)),
  open: () => new CudaDriver(),
});
