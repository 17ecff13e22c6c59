// SPDX-License-Identifier: Apache-2.0
// Our kernels as they were built: machine code where this GPU's is there, else the code that the driver
// translates for newer ones (kernels/build.ts).

import { readFileSync } from "node:fs";
import { RelightError } from "../errors.ts";
import { errnoOf } from "../platform/node-errors.ts";

/** Beside src/ and dist/ alike. */
const folder = new URL("../../kernels/build/", import.meta.url);
const machineCode: Readonly<Record<number, string>> = { 90: "relight.sm_90.cubin" };
const translated = { name: "relight.compute_90.ptx", archMin: 90 };

/**
 * @param arch compute capability times ten
 * @throws device_unsupported when no kernel of ours runs there
 */
export function kernelImage(arch: number): Uint8Array {
  const name = machineCode[arch] ?? (arch >= translated.archMin ? translated.name : null);
  if (name === null) {
    throw new RelightError(
      "device_unsupported",
      `Cannot run kernels on a GPU of capability ${arch / 10}: wanted ${translated.archMin / 10} or more`,
    );
  }
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
