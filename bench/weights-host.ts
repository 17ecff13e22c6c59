// SPDX-License-Identifier: Apache-2.0
// What needs no GPU: the HTTP transport from host memory to host memory against raw TCP over the same
// loopback, and how long N targets take that all ask one source which admits one reader (fake GPUs whose
// copies are slow, so that the copies and not this machine decide).

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { WeightHttpClient } from "../src/transport/weights-http-client.ts";
import { type RangeSource, startWeightServer } from "../src/transport/weights-http-server.ts";
import { TestAgent } from "../test/contracts/weights-agent.ts";
import type { TensorSpec } from "../test/contracts/weights-engine.ts";
import { ObedientEngine } from "../test/contracts/weights-engine-process.ts";
import type { Emit } from "./main.ts";

const MiB = 2 ** 20;
const requestBytes = 8 * MiB;
const memoryBytes = 64 * requestBytes;
const totalBytes = 2_048 * MiB;
const rounds = 5;
/** As many requests as the transport keeps under way in one thread. */
const slots = 3;

export async function run(emit: Emit): Promise<void> {
  await measureBytePath(emit);
  await measureChain(emit);
}

/** Ours and raw in turn, medians. One thread each way on both sides, as raw has one process. */
async function measureBytePath(emit: Emit): Promise<void> {
  await using server = await startWeightServer({
    host: "127.0.0.1",
    port: 0,
    threads: 1,
    source: memorySource(new Uint8Array(new SharedArrayBuffer(memoryBytes)).fill(7)),
  });
  await using client = new WeightHttpClient({ threads: 1 });
  const into = new Uint8Array(new SharedArrayBuffer(slots * requestBytes));
  await readAll(client, server.endpoint, into);
  const [ours, raw, rawTwo]: [number[], number[], number[]] = [[], [], []];
  for (let round = 0; round < rounds; round += 1) {
    ours.push(await readAll(client, server.endpoint, into));
    raw.push(rawLoopback(1));
    rawTwo.push(rawLoopback(2));
  }
  if (into.some((byte) => byte !== 7)) throw new Error("other bytes arrived than were sent");
  const [value, baseline] = [median(ours), median(raw)];
  const name = "weights.http.host.vs_loopback";
  emit({ name, value, unit: "GB/s", baseline, ratio: value / baseline });
  const two = median(rawTwo);
  emit({ name: `${name}_two_streams`, value, unit: "GB/s", baseline: two, ratio: value / two });
  emit({ name: "weights.http.host.spread", value: spread(ours), unit: "GB/s" });
  emit({ name: "weights.http.host.loopback_spread", value: spread(raw), unit: "GB/s" });
}

function memorySource(memory: Uint8Array<SharedArrayBuffer>): RangeSource {
  return {
    call: async () => null,
    fill: async (_token, [range]) => {
      const from = range?.offsetBytes ?? 0;
      return { memory: memory.subarray(from, from + (range?.bytes ?? 0)), release: () => {} };
    },
  };
}

/** @returns GB/s */
async function readAll(
  client: WeightHttpClient,
  endpoint: string,
  into: Uint8Array<SharedArrayBuffer>,
): Promise<number> {
  using link = client.link(endpoint);
  const token = "0".repeat(32);
  const signal = AbortSignal.timeout(60_000);
  const began = performance.now();
  let next = 0;
  const stream = async (slot: number) => {
    const part = into.subarray(slot * requestBytes, (slot + 1) * requestBytes);
    for (let at = next; at < totalBytes; at = next) {
      next += requestBytes;
      const range = { allocation: 0, offsetBytes: at % memoryBytes, bytes: requestBytes };
      await link.read({ token, ranges: [range], into: part }, signal);
    }
  };
  await Promise.all(Array.from({ length: slots }, (_, slot) => stream(slot)));
  return totalBytes / (performance.now() - began) / 1e6;
}

function rawLoopback(streams: number): number {
  const script = join(import.meta.dirname, "weights_loopback.py");
  const { stdout } = spawnSync("python3", [script], { input: `[${streams}]`, timeout: 60_000 });
  return (JSON.parse(stdout.toString()) as { gbs: number }).gbs;
}

/** 256 KiB in 32 tensors, which take a fake GPU two seconds. */
const tensors: readonly TensorSpec[] = Array.from({ length: 32 }, (_, index) => ({
  name: `layers.${index}`,
  dtype: "uint8",
  shape: [8_192],
  stride: [1],
}));

async function measureChain(emit: Emit): Promise<void> {
  const one = await loadMany(1);
  emit({ name: "weights.chain.one_ms", value: one, unit: "ms" });
  for (const count of [2, 4, 8]) {
    const value = await loadMany(count);
    const name = `weights.chain.${count}_targets_vs_one`;
    emit({ name, value, unit: "ms", baseline: one, ratio: one / value });
  }
}

/** @returns milliseconds until the last of so many targets has verified everything */
async function loadMany(count: number): Promise<number> {
  const directory = mkdtempSync(join(tmpdir(), "relight-bench-"));
  const agent = (name: string) =>
    new TestAgent({
      backend: "fake",
      directory,
      socket: join(directory, name),
      bytesPerSecond: MiB / 8,
      readersMax: 1,
      busyMsMax: 60_000,
      limits: { batchBytes: 8_192 },
    });
  const engine = (socket: string, ordinal: number) =>
    ObedientEngine.open({
      backend: "fake",
      directory,
      agent: socket,
      ordinal,
      sharing: "ipc",
      isReversed: false,
      allocationCount: 1,
      tensors,
    });
  const agents = [agent("source"), ...Array.from({ length: count }, (_, at) => agent(`${at}`))];
  const sockets = agents.map((one) => one.address);
  const engines = await Promise.all(sockets.map((socket, at) => engine(socket, at === 0 ? 0 : 1)));
  try {
    const [source, ...targets] = engines;
    await source?.answer({ do: "fill", salt: "x" });
    await source?.answer({ do: "publish" });
    const began = performance.now();
    const load = { do: "load", sources: sockets.slice(0, 1), content: null } as const;
    const answers = await Promise.all(targets.map((target) => target.answer(load)));
    const ms = performance.now() - began;
    const failed = answers.find((answer) => "error" in answer);
    if (failed !== undefined) throw new Error(JSON.stringify(failed));
    return ms;
  } finally {
    for (const one of [...engines, ...agents]) await one[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true, force: true });
  }
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

function spread(values: readonly number[]): number {
  return Math.max(...values) - Math.min(...values);
}
