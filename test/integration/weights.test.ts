// SPDX-License-Identifier: Apache-2.0
// The weights contract on the fake GPU, over every transport: real processes, real sockets, files for
// memory.

import { weightsContract } from "../contracts/weights.ts";

for (const transport of ["cuda-ipc", "http", "nccl"] as const) {
  weightsContract({ backend: "fake", skip: false, deviceCount: 2, transport });
}
