// SPDX-License-Identifier: Apache-2.0
// The weights contract on GPUs: both engines on one, and on two where there are two. NCCL refuses two
// ends on one GPU.

import { weightsContract } from "../contracts/weights.ts";
import { gpuMissing, ncclMissing } from "./gpu-present.ts";

const [none, onlyOne, unpaired] = [await gpuMissing(1), await gpuMissing(2), await ncclMissing()];
const cuda = { backend: "cuda" } as const;
weightsContract({ ...cuda, skip: none, deviceCount: 1, transport: "cuda-ipc" });
weightsContract({ ...cuda, skip: onlyOne, deviceCount: 2, transport: "cuda-ipc" });
weightsContract({ ...cuda, skip: onlyOne, deviceCount: 2, transport: "http" });
weightsContract({ ...cuda, skip: unpaired, deviceCount: 2, transport: "nccl" });
