// SPDX-License-Identifier: Apache-2.0
// The digest kernel against its reference, on the fake and on a GPU: every alignment and length that
// the kernel treats differently.

import assert from "node:assert/strict";
import { describe, test as register } from "node:test";
import { digest as kernelReference } from "../../kernels/reference/digest.ts";
import { GpuDigester } from "../../src/gpu/digest.ts";
import { digestReference, formatDigest } from "../../src/gpu/digest-reference.ts";
import { at, type GpuDriver } from "../../src/gpu/driver.ts";

const KiB = 1_024;

export interface GpuDigestContractOptions {
  readonly open: () => GpuDriver;
  readonly image: () => Uint8Array;
  readonly name: string;
  readonly skip: string | false;
}

export function gpuDigestContract({ open, image, name, skip }: GpuDigestContractOptions): void {
  describe(`gpu digest: ${name}`, { timeout: 60_000 }, () => {
    // Each claim is skipped, not the suite, so that skips are counted one by one.
    const test = (claim: string, run: () => Promise<void> | void) => register(claim, { skip }, run);

    const wait = { signal: AbortSignal.timeout(60_000), deadlineMs: 20_000 };

    async function digests(
      content: Uint8Array,
      ranges: readonly { readonly from: number; readonly bytes: number }[],
      seed: bigint,
    ): Promise<string[]> {
      await using driver = open();
      const [device] = await driver.devices();
      const { handle } = await driver.openContext(0);
      const stream = await driver.openStream(handle);
      const memory = await driver.allocate(handle, {
        bytes: content.byteLength,
        sharing: "private",
      });
      const context = { handle, multiprocessorCount: device?.multiprocessorCount ?? 1 };
      await using digester = await GpuDigester.open(driver, context, {
        image: image(),
        segmentCountMax: 64,
      });
      const segments = ranges.map(({ from, bytes }) => ({
        address: at(memory.address, from),
        bytes,
      }));
      const commands = digester.commands(segments, { seed, first: 3 });
      await driver.submit(stream, [
        { do: "upload", to: memory.address, bytes: content },
        ...commands.prepare,
        ...commands.run,
        ...commands.collect,
      ]);
      await driver.finish(stream, wait);
      return digester.collected({ first: 3, count: segments.length });
    }

    test("every length and alignment gives the reference's bits", async () => {
      const content = pattern(600 * KiB);
      const ranges = [1, 15, 16, 17, 4_095, 4_096, 256 * KiB, 256 * KiB + 1, 513 * KiB + 7].flatMap(
        (bytes) => [0, 16, 5].map((from) => ({ from, bytes })),
      );
      const seed = 0x1234_5678_9abc_def0n;
      const seen = await digests(content, ranges, seed);
      const wanted = ranges.map(({ from, bytes }) =>
        formatDigest(digestReference(content.subarray(from, from + bytes), seed)),
      );
      assert.deepEqual(seen, wanted);
    });

    test("the reference here and the kernels' own agree", () => {
      for (const bytes of [0, 1, 16, 33, 1_000]) {
        const content = pattern(bytes);
        assert.equal(formatDigest(digestReference(content, 99n)), kernelReference(content, 99n));
      }
    });

    test("seed, one bit, two words swapped and one zero more each change the digest", async () => {
      const content = pattern(8 * KiB);
      const whole = [{ from: 0, bytes: 4 * KiB }];
      const flipped = Uint8Array.from(content, (byte, index) =>
        index === 4_095 ? byte ^ 1 : byte,
      );
      const swapped = Uint8Array.from(content);
      swapped.set(content.subarray(0, 16), 16);
      swapped.set(content.subarray(16, 32), 0);
      const zeros = new Uint8Array(8 * KiB);
      const seen = new Set([
        ...(await digests(content, whole, 1n)),
        ...(await digests(content, whole, 2n)),
        ...(await digests(flipped, whole, 1n)),
        ...(await digests(swapped, whole, 1n)),
        ...(await digests(zeros, [...whole, { from: 0, bytes: 4 * KiB + 1 }], 1n)),
      ]);
      assert.equal(seen.size, 6);
    });
  });
}

function pattern(bytes: number): Uint8Array {
  let state = 1;
  return new Uint8Array(bytes).map(() => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return state >>> 24;
  });
}
