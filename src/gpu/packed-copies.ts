// SPDX-License-Identifier: Apache-2.0
// Copies on their way to the GPU's thread: runs of them become three arrays, which cost one clone
// instead of thousands and are what the driver's batch call takes as they are.

import type { Command } from "./driver.ts";

export interface PackedCopies {
  readonly do: "copies";
  readonly to: BigUint64Array;
  readonly from: BigUint64Array;
  readonly bytes: BigUint64Array;
}

export type PackedCommand = Command | PackedCopies;

type Copy = Extract<Command, { do: "copy" }>;

const packedCountMin = 4; // Fewer are as quick one by one.

export function packCopies(commands: readonly Command[]): PackedCommand[] {
  const packed: PackedCommand[] = [];
  let run: Copy[] = [];
  const flush = () => {
    if (run.length >= packedCountMin) packed.push(pack(run));
    else packed.push(...run);
    run = [];
  };
  for (const command of commands) {
    if (command.do === "copy" && command.bytes > 0) run.push(command);
    else {
      flush();
      packed.push(command);
    }
  }
  flush();
  return packed;
}

function pack(copies: readonly Copy[]): PackedCopies {
  return {
    do: "copies",
    to: BigUint64Array.from(copies, (copy) => copy.to),
    from: BigUint64Array.from(copies, (copy) => copy.from),
    bytes: BigUint64Array.from(copies, (copy) => BigInt(copy.bytes)),
  };
}
