// SPDX-License-Identifier: Apache-2.0
// What is seen of a boot while it runs. The agent says facts; the command line decides how they look:
// bars on a terminal, plain lines elsewhere, the whole record for machines.

import type { BootRecord } from "./ledger.ts";

export interface Transfer {
  readonly family: string;
  readonly piecesDone: number;
  readonly piecesTotal: number;
  readonly bytesDone: number;
}

export interface Narrator {
  say(text: string): void;
  transfer(progress: Transfer): void;
  /** The boot as it is now: once the engine is healthy, and at its end. */
  boot(event: BootEvent, record: BootRecord): void;
}

export type BootEvent = "healthy" | "ended";

export const silentNarrator: Narrator = { say: () => {}, transfer: () => {}, boot: () => {} };
