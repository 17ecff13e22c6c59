// SPDX-License-Identifier: Apache-2.0
// Bytes from GPU to GPU where no memory is shared: the source is told what to send, in groups, and both
// sides enqueue the same moves in the same order. A source that does not send costs a deadline.

import type { GpuDriver, PairHandle, PairMove } from "../gpu/driver.ts";
import { type BoundCopy, type Carrier, type Run, runsOf } from "./carrier.ts";
import type { SourceRange } from "./staged-carrier.ts";

export interface PairLink {
  /** Has the source enqueue sends of these ranges. Resolves when it has. */
  send(ranges: readonly SourceRange[], signal: AbortSignal): Promise<void>;
}

/** A group is one launch of NCCL; its bytes bound what a deadline must allow for. */
const movesPerGroupMax = 256;
const moveBytesMax = 256 * 2 ** 20;

/**
 * @param pair stays open: the next lease of the same source uses it again
 * @param onAbandoned the pair was closed and is of no more use
 */
export function pairedCarrier(
  driver: GpuDriver,
  {
    pair,
    link,
    onAbandoned,
  }: { readonly pair: PairHandle; readonly link: PairLink; readonly onAbandoned: () => void },
): Carrier {
  let last: Promise<void> = Promise.resolve();
  return {
    transport: "nccl",
    deliveriesMax: 2,
    prefetch: () => undefined,
    bring: ({ copies, stream, after }, wait) => {
      // One after the other, for both sides must see the same order.
      last = last
        .catch(() => undefined)
        .then(async () => {
          for (const group of groupsOf(copies)) {
            wait.signal.throwIfAborted();
            const moves = group.map(
              ({ to, bytes }): PairMove => ({ do: "receive", address: to, bytes }),
            );
            await Promise.all([
              link.send(group, wait.signal),
              driver.exchange(stream, pair, { moves, wait }),
            ]);
          }
          await driver.submit(stream, after);
        });
      return last;
    },
    abandon: async () => {
      onAbandoned();
      await driver.close(pair);
    },
    [Symbol.asyncDispose]: () => last.catch(() => undefined),
  };
}

function* groupsOf(copies: readonly BoundCopy[]): Generator<Run[]> {
  let open: Run[] = [];
  for (const run of runsOf(copies, moveBytesMax)) {
    open.push(run);
    if (open.length < movesPerGroupMax) continue;
    yield open;
    open = [];
  }
  if (open.length > 0) yield open;
}
