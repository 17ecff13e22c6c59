// SPDX-License-Identifier: Apache-2.0
// Dispatch and combine on the GPU against their reference. The checker is Python, because the ranks
// are torch processes there; see docs/kernels.md.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gpuMissing } from "./gpu-present.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const torchProbe = "import torch, cuda.bindings; assert torch.cuda.is_available()";

function missing(reason: string | false): string | false {
  if (reason) return reason;
  const probe = spawnSync("python3", ["-c", torchProbe], { timeout: 60_000 });
  return probe.status === 0 ? false : "gpu: python3 has no torch with CUDA here";
}

const skip = missing(await gpuMissing(1));

for (const [claim, script] of [
  ["dispatch and combine equal the reference, also through joins and SIGKILL", "ep_check.py"],
  ["2000 poisoned steps give equal bits", "ep_stress.py"],
  ["relight.ep.Buffer replays one graph through 2, 4, a crash and 4 ranks", "ep_buffer_check.py"],
  ["the digest kernel equals the reference", "digest_check.py"],
] as const) {
  test(claim, { skip, timeout: 300_000 }, () => {
    const run = spawnSync("python3", [`${root}kernels/test/${script}`], {
      encoding: "utf8",
      timeout: 280_000,
    });
    assert.equal(run.status, 0, `${run.stdout}${run.stderr}`);
  });
}
