// SPDX-License-Identifier: Apache-2.0
// The contract of src/gpu/ep-device.ts: several ranks of one process exchange through windows of one GPU,
// and what they get is what kernels/reference/exchange.ts says. The fake's kernels and the real ones pass it.

import assert from "node:assert/strict";
import { closeSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test as register } from "node:test";
import { combined, type Exchange, received, type Step } from "../../kernels/reference/exchange.ts";
import { fromBf16, toBf16 } from "../../kernels/reference/quantise.ts";
import type { DevicePtr, GpuDriver } from "../../src/gpu/driver.ts";
import { at } from "../../src/gpu/driver.ts";
import { EpDevice, type EpOutputs, type EpOwner } from "../../src/gpu/ep-device.ts";
import type { EpShape } from "../../src/gpu/ep-layout.ts";
import { never } from "../../src/gpu/ep-state.ts";

export interface GpuEpContractOptions {
  readonly name: string;
  readonly skip: string | false;
  readonly open: (directory: string) => GpuDriver;
  readonly image: () => Uint8Array;
}

const shape: EpShape = {
  ranksMax: 4,
  tokensMax: 8,
  hidden: 64,
  topk: 3,
  localExpertsMax: 3,
  parities: 1,
  hasSelectRows: false,
};
const expertsMax = 6;
const rows = shape.ranksMax * shape.tokensMax;
const wait = { signal: AbortSignal.timeout(110_000), deadlineMs: 30_000 };
const long = 20_000;
const rowErrorMax = 4e-3;

export function gpuEpContract({ name, skip, open, image }: GpuEpContractOptions): void {
  describe(`expert-parallel contract: ${name}`, { timeout: 120_000 }, () => {
    const test = (claim: string, run: () => Promise<void>) => register(claim, { skip }, run);

    async function withRanks(count: number, act: (ranks: Rank[]) => Promise<void>): Promise<void> {
      const directory = mkdtempSync(join(tmpdir(), "relight-ep-"));
      const drivers = Array.from({ length: count }, () => open(directory));
      try {
        const ranks: Rank[] = [];
        for (const [slot, driver] of drivers.entries()) {
          ranks.push(await Rank.open(driver, slot, image()));
        }
        for (const rank of ranks) for (const peer of ranks) await rank.connect(peer);
        await act(ranks);
      } finally {
        for (const driver of drivers) await driver[Symbol.asyncDispose]();
        rmSync(directory, { recursive: true, force: true });
      }
    }

    test("dispatch() and combine() give what the reference gives, step after step", async () => {
      await withRanks(3, async (ranks) => {
        await setMembers(
          ranks,
          ranks.map(() => 1n),
        );
        for (let step = 1; step <= 3; step += 1) {
          const exchange = exchangeOf(ranks, step);
          await Promise.all(ranks.map((rank) => rank.step(exchange)));
          for (const rank of ranks) await rank.check(exchange, { step, used: 0b111, failed: 0 });
        }
      });
    });

    test("a rank that joins at a step takes part from it on, and one that leaves until it", async () => {
      await withRanks(3, async (ranks) => {
        const [first, second, third] = ranks;
        assert(first !== undefined && second !== undefined && third !== undefined);
        const starts = [1n, 1n, 3n];
        const ends = [never, 4n, never];
        await setMembers(ranks, starts, ends);
        await third.device.restart(2n);
        for (let step = 1; step <= 4; step += 1) {
          const present = ranks.filter(
            (_, slot) => (starts[slot] ?? 0n) <= BigInt(step) && BigInt(step) < (ends[slot] ?? 0n),
          );
          const exchange = exchangeOf(present, step);
          await Promise.all(present.map((rank) => rank.step(exchange)));
          const used = [0, 0b011, 0b011, 0b111, 0b101][step] ?? 0;
          for (const rank of present) await rank.check(exchange, { step, used, failed: 0 });
        }
      });
    });

    test("a peer that never comes is given up at the deadline, suspected, and left out afterwards", async () => {
      await withRanks(3, async (ranks) => {
        await setMembers(
          ranks,
          ranks.map(() => 1n),
        );
        const living = ranks.slice(0, 2);
        for (const rank of living) await rank.device.setTimeout(150);
        const exchange = exchangeOf(living, 1);
        await Promise.all(living.map((rank) => rank.step(exchange)));
        for (const rank of living) {
          const report = await rank.device.report(wait);
          assert.equal(report.dispatch.failed, 0b100);
          assert.equal(report.suspect, 0b100);
          assert.equal(report.fault.peer, 2);
        }
        const next = exchangeOf(living, 2);
        await Promise.all(living.map((rank) => rank.step(next)));
        for (const rank of living) await rank.check(next, { step: 2, used: 0b011, failed: 0 });
      });
    });

    test("mask() frees a kernel that waits for a dead peer long before its deadline", async () => {
      await withRanks(2, async (ranks) => {
        await setMembers(
          ranks,
          ranks.map(() => 1n),
        );
        const [living] = ranks;
        assert(living !== undefined);
        const exchange = exchangeOf([living], 1);
        const began = performance.now();
        const done = living.step(exchange);
        await new Promise((resolve) => setTimeout(resolve, 60));
        await living.device.mask(0b01);
        await done;
        assert.ok(performance.now() - began < long / 2);
        const report = await living.device.report(wait);
        assert.equal(report.dispatch.failed, 0b10);
        assert.equal(report.suspect, 0, "what the host masks needs no suspicion");
      });
    });
  });
}

const owners: readonly EpOwner[] = Array.from({ length: expertsMax }, (_, expert) => ({
  slot: expert % 3,
  local: Math.floor(expert / 3),
}));

async function setMembers(
  ranks: readonly Rank[],
  starts: readonly bigint[],
  ends: readonly bigint[] = ranks.map(() => never),
): Promise<void> {
  const members = ranks.map(({ device }, slot) => ({
    slot: device.slot,
    incarnation: 7 + slot,
    onAt: starts[slot] ?? never,
    offAt: ends[slot] ?? never,
  }));
  for (const { device } of ranks) {
    await device.setMembers(members);
    await device.setOwners({ now: owners, next: owners, from: 0n });
  }
}

/** One step of all who are there; the others' experts count as dead. */
function exchangeOf(present: readonly Rank[], step: number): Exchange {
  const slots = Array.from({ length: shape.ranksMax }, (_, slot) => slot);
  const alive = slots.map((slot) => present.some(({ device }) => device.slot === slot));
  return {
    format: "bf16",
    owners: owners.map(({ slot, local }) => ({ rank: slot, local })),
    alive,
    steps: slots.map((slot) => stepOf(slot, step)),
  };
}

/** Ranks bring 8, 5 and 2 tokens; one choice is none. */
function stepOf(slot: number, step: number): Step {
  const count = Math.max(1, shape.tokensMax - 3 * slot);
  const value = (token: number, i: number) =>
    Math.sin(1 + slot * 7 + token * 3 + i * 0.37 + step * 11);
  return {
    tokens: Array.from({ length: count }, (_, token) =>
      Uint16Array.from({ length: shape.hidden }, (_, i) => toBf16(4 * value(token, i))),
    ),
    experts: Array.from({ length: count }, (_, token) =>
      [0, 1, 2].map((choice) =>
        choice === 2 && token === 1
          ? -1
          : (slot + step + token + choice * (1 + (token % 2))) % expertsMax,
      ),
    ),
    weights: Array.from({ length: count }, (_, token) =>
      [0, 1, 2].map((choice) => Math.fround(0.25 + Math.abs(value(token, choice)))),
    ),
  };
}

function expertOf(values: Float64Array, expert: number): Uint16Array {
  return Uint16Array.from(values, (value) => toBf16(value * (1 + expert / 8)));
}

class Rank {
  readonly device: EpDevice;
  readonly #driver: GpuDriver;
  readonly #x: DevicePtr;
  readonly #index: DevicePtr;
  readonly #weights: DevicePtr;
  readonly #y: DevicePtr;
  readonly #home: DevicePtr;
  readonly #out: EpOutputs;

  static async open(driver: GpuDriver, slot: number, image: Uint8Array): Promise<Rank> {
    const device = await EpDevice.open(driver, {
      ...{ ordinal: 0, slot, shape, expertsMax, image },
      ...{ timeoutMs: long, blocks: 8 },
    });
    const { address } = await driver.allocate(device.context, {
      bytes: 2 ** 20,
      sharing: "private",
    });
    return new Rank(driver, device, address);
  }

  private constructor(driver: GpuDriver, device: EpDevice, memory: DevicePtr) {
    let next = 0;
    const take = (bytes: number) => {
      next += 256 * Math.ceil(bytes / 256);
      return at(memory, next - 256 * Math.ceil(bytes / 256));
    };
    const { tokensMax, hidden, topk, localExpertsMax: locals, ranksMax } = shape;
    this.device = device;
    this.#driver = driver;
    this.#x = take(tokensMax * hidden * 2);
    this.#index = take(tokensMax * topk * 4);
    this.#weights = take(tokensMax * topk * 4);
    this.#y = take(locals * rows * hidden * 2);
    this.#home = take(tokensMax * hidden * 2);
    this.#out = {
      slots: rows,
      x: take(locals * rows * hidden * 2),
      scales: null,
      source: take(locals * rows * 4),
      range: take(locals * ranksMax * 8),
      count: take(locals * 4),
    };
  }

  async connect(peer: Rank): Promise<void> {
    if (peer === this) return;
    const window = await peer.device.exportWindow();
    assert(window.kind === "descriptor");
    await this.device.connect(peer.device.slot, window);
    for (const { descriptor } of window.pieces) closeSync(descriptor);
  }

  async step(exchange: Exchange): Promise<void> {
    const mine = exchange.steps[this.device.slot];
    assert(mine !== undefined);
    const tokens = mine.tokens.length;
    const nan = {
      do: "fill",
      byte: 0xff,
      bytes: shape.localExpertsMax * rows * shape.hidden * 2,
    } as const;
    const upload = (to: DevicePtr, words: Uint16Array | Int32Array | Float32Array) =>
      ({ do: "upload", to, bytes: new Uint8Array(words.buffer) }) as const;
    await this.device.run(
      [
        { ...nan, to: this.#out.x },
        { ...nan, to: this.#y },
        upload(this.#x, Uint16Array.from(mine.tokens.flatMap((token) => [...token]))),
        upload(this.#index, Int32Array.from(mine.experts.flat())),
        upload(this.#weights, Float32Array.from(mine.weights.flat())),
        this.device.dispatch({
          ...{ x: this.#x, topkIndex: this.#index, topkWeights: this.#weights },
          ...{ tokens, format: "bf16", out: this.#out },
        }),
      ],
      wait,
    );
    await this.#applyExperts(exchange);
    const combine = { y: this.#y, out: this.#home, slots: rows, topkWeights: null };
    await this.device.run([this.device.combine(combine)], wait);
  }

  async #applyExperts({ owners: table }: Exchange): Promise<void> {
    const counts = await this.#words(this.#out.count, shape.localExpertsMax);
    for (const [local, count] of counts.entries()) {
      const expert = table.findIndex(
        (owner) => owner?.rank === this.device.slot && owner.local === local,
      );
      const offset = local * rows * shape.hidden * 2;
      const bytes = await this.#read(at(this.#out.x, offset), count * shape.hidden * 2);
      const values = Float64Array.from(new Uint16Array(bytes.buffer), fromBf16);
      const y = new Uint8Array(expertOf(values, expert).buffer);
      await this.device.run([{ do: "upload", to: at(this.#y, offset), bytes: y }], wait);
    }
  }

  async check(
    exchange: Exchange,
    { step, used, failed }: { step: number; used: number; failed: number },
  ): Promise<void> {
    const { slot } = this.device;
    const counts = await this.#words(this.#out.count, shape.localExpertsMax);
    for (const [local, count] of counts.entries()) {
      const wanted = received(exchange, slot, local);
      assert.equal(count, wanted.length, `rows of slot ${slot}, local expert ${local}`);
      const source = await this.#words(at(this.#out.source, 4 * local * rows), count);
      const places = wanted.map((row) => row.source * shape.tokensMax + row.token);
      assert.deepEqual(source, places);
      const bytes = 2 * shape.hidden;
      const x = await this.#read(at(this.#out.x, local * rows * bytes), count * bytes);
      assert.deepEqual(Buffer.from(x), Buffer.concat(wanted.map(({ row }) => row.payload)));
    }
    const home = await this.#read(this.#home, shape.tokensMax * shape.hidden * 2);
    const seen = new Uint16Array(home.buffer);
    combined(exchange, slot, expertOf).forEach((row, token) => {
      const ours = seen.subarray(token * shape.hidden, (token + 1) * shape.hidden);
      assert.ok(rowError(ours, row) < rowErrorMax, `slot ${slot}, token ${token}`);
    });
    const report = await this.device.report(wait);
    for (const half of [report.dispatch, report.combine]) {
      assert.deepEqual(half, { epoch: BigInt(step), used, failed });
    }
  }

  async #words(from: DevicePtr, count: number): Promise<number[]> {
    return [...new Int32Array((await this.#read(from, 4 * count)).buffer)];
  }

  async #read(address: DevicePtr, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    const read = await this.#driver.read(this.device.stream, { address, bytes }, wait);
    return Uint8Array.from(read);
  }
}

function rowError(ours: Uint16Array, wanted: Uint16Array): number {
  let error = 0;
  let size = 0;
  wanted.forEach((bits, i) => {
    error += (fromBf16(ours[i] ?? Number.NaN) - fromBf16(bits)) ** 2;
    size += fromBf16(bits) ** 2;
  });
  return size === 0 ? Math.sqrt(error) : Math.sqrt(error / size);
}
