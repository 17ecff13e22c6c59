// SPDX-License-Identifier: Apache-2.0
// How a boot looks while it runs: one line a state change, and on a terminal a bar that is redrawn; for
// machines its record, on standard error, because standard output is the engine's.

import { outcomeOf } from "../agent/ledger.ts";
import type { Narrator, Transfer } from "../agent/narrator.ts";
import { formatBytes } from "../core/units.ts";
import type { Output } from "./output.ts";

const barWidth = 30;
/** Redrawing more often than this costs more than anybody sees. */
const redrawMsMin = 100;

export function terminalNarrator(output: Output): Narrator {
  const isTerminal = process.stderr.isTTY === true && !output.isJson;
  let drawnAtMs = 0;
  let isDrawn = false;
  const clear = () => {
    if (isDrawn) process.stderr.write("\r\u001b[2K");
    isDrawn = false;
  };
  return {
    say: (text) => {
      clear();
      output.note(`relight: ${text}`);
    },
    boot: (event, record) => output.aside({ event, outcome: outcomeOf(record), boot: record }),
    transfer: (progress) => {
      const now = performance.now();
      const isLast = progress.piecesDone === progress.piecesTotal;
      if (!isTerminal || (now - drawnAtMs < redrawMsMin && !isLast)) return;
      drawnAtMs = now;
      process.stderr.write(`\r\u001b[2K${drawBar(progress)}`);
      isDrawn = true;
    },
  };
}

/** `triton [######------]  50 %  12 MiB`. */
export function drawBar({ family, piecesDone, piecesTotal, bytesDone }: Transfer): string {
  const share = piecesTotal === 0 ? 1 : piecesDone / piecesTotal;
  const filled = Math.round(share * barWidth);
  const bar = "#".repeat(filled) + "-".repeat(barWidth - filled);
  return `relight: ${family} [${bar}] ${String(Math.round(share * 100)).padStart(3)} %  ${formatBytes(bytesDone)}`;
}
