// SPDX-License-Identifier: Apache-2.0
// Our kernels as they were built: machine code where this GPU's is there, else the code that the driver
// translates for newer ones (kernels/build.ts).

import { readFileSync } from "node:fs";
import { RelightError } from "../errors.ts";
import { errnoOf } from "../platform/node-errors.ts";

/** Beside src/ and dist/ alike. */
const folder = new URL("../../kernels/build/", import.meta.url);
const machineCode: Readonly<Record<number, string>> = { 90: "sm_90.cubin" };
const translated = { name: "compute_90.ptx", archMin: 90 };

/** `relight`: digests and the exchange. `moe`: what the demo's layer needs around it. */
export type KernelModule = "relight" | "moe";

/**
 * @param arch compute capability times ten
 * @throws device_unsupported when no kernel of ours runs there
 */
export function kernelImage(arch: number, module: KernelModule = "relight"): Uint8Array {
  const built = machineCode[arch] ?? (arch >= translated.archMin ? translated.name : null);
  if (built === null) {
    throw new RelightError(
      "device_unsupported",
      `Cannot run kernels on a GPU of capability ${arch / 10}: wanted ${translated.archMin / 10} or more`,
    );
  }
  const name = `${module}.${built}`;
  try {
    return readFileSync(new URL(name, folder));
  } catch (cause) {
    throw new RelightError(
      "device_unsupported",
      `Cannot read the kernels "${name}": ${errnoOf(cause)}; wanted what \`node kernels/build.ts\` makes`,
      { cause },
    );
  }
}
