// SPDX-License-Identifier: Apache-2.0
// What a person sees of a boot while it runs. The agent says facts; the command line decides how they
// look: bars on a terminal, plain lines elsewhere, nothing for machines.

export interface Transfer {
  readonly family: string;
  readonly piecesDone: number;
  readonly piecesTotal: number;
  readonly bytesDone: number;
}

export interface Narrator {
  say(text: string): void;
  transfer(progress: Transfer): void;
}

export const silentNarrator: Narrator = { say: () => {}, transfer: () => {} };
