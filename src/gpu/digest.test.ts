// SPDX-License-Identifier: Apache-2.0

import { gpuDigestContract } from "../../test/contracts/gpu-digest.ts";
import { fakeDigestImage, fakeDigestKernels } from "./digest-reference.ts";
import { FakeDriver } from "./fake.ts";

gpuDigestContract({
  name: "fake",
  skip: false,
  image: () => fakeDigestImage,
  open: () => new FakeDriver({ kernels: fakeDigestKernels }),
});
