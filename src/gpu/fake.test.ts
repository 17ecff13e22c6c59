// SPDX-License-Identifier: Apache-2.0

import { fillWordsFake, gpuContract } from "../../test/contracts/gpu.ts";
import { FakeDriver } from "./fake.ts";

gpuContract({
  backend: "fake",
  skip: false,
  pairSkip: false,
  open: (directory) =>
    new FakeDriver({ directory, kernels: { relight_contract_fill: fillWordsFake } }),
});
