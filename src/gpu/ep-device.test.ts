// SPDX-License-Identifier: Apache-2.0

import { gpuEpContract } from "../../test/contracts/gpu-ep.ts";
import { FakeDriver } from "./fake.ts";
import { fakeEpImage, fakeEpKernels } from "./fake-ep.ts";

gpuEpContract({
  name: "fake",
  skip: false,
  open: (directory) => new FakeDriver({ directory, kernels: fakeEpKernels }),
  image: () => fakeEpImage,
});
