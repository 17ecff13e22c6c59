// SPDX-License-Identifier: Apache-2.0
// The weights contract on GPUs: both engines on one, and on two where there are two.

import { weightsContract } from "../contracts/weights.ts";
import { gpuMissing } from "./gpu-present.ts";

weightsContract({ backend: "cuda", skip: await gpuMissing(1), deviceCount: 1 });
weightsContract({ backend: "cuda", skip: await gpuMissing(2), deviceCount: 2 });
