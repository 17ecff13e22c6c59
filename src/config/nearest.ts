// SPDX-License-Identifier: Apache-2.0
// The known name that a mistyped one most likely meant.

const charsMax = 80;

/** The candidate with the fewest edits, or undefined when more than a third of the name differs. */
export function nearest(name: string, candidates: Iterable<string>): string | undefined {
  const given = name.slice(0, charsMax);
  let best: string | undefined;
  let bestEdits = Math.max(2, Math.floor(given.length / 3)) + 1;
  for (const candidate of candidates) {
    const edits = editCount(given, candidate);
    if (edits < bestEdits) [best, bestEdits] = [candidate, edits];
  }
  return best;
}

/** ": nearest is X", or nothing. */
export function nearestHint(name: string, candidates: Iterable<string>): string {
  const found = nearest(name, candidates);
  return found === undefined ? "" : `: nearest is ${found}`;
}

/** Insertions, deletions and replacements that turn one text into the other (Levenshtein). */
function editCount(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (const [index, char] of [...from].entries()) row = nextRow({ row, index, char, to });
  return row[to.length] ?? 0;
}

function nextRow(step: {
  readonly row: readonly number[];
  readonly index: number;
  readonly char: string;
  readonly to: string;
}): number[] {
  const next = [step.index + 1];
  for (let at = 1; at < step.row.length; at++) {
    const replaced = (step.row[at - 1] ?? 0) + (step.to[at - 1] === step.char ? 0 : 1);
    const inserted = (next[at - 1] ?? 0) + 1;
    const deleted = (step.row[at] ?? 0) + 1;
    next.push(Math.min(replaced, inserted, deleted));
  }
  return next;
}
