// SPDX-License-Identifier: Apache-2.0
// Weights from a live replica, against what the machine can do: one raw peer copy of the same bytes, and
// one NCCL broadcast for each tensor. Needs two GPUs; with none it measures the handshake's arithmetic.
//
// A pair is two engine processes and two agents; "from handles to verified" is what the target's agent
// needs from the lease to the last digest: mapping the handles, copying, digesting, comparing.

import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { CudaDriver } from "../src/gpu/cuda.ts";
import { GpuDigester } from "../src/gpu/digest.ts";
import { at, type ContextHandle, type GpuDevice, type GpuMemory } from "../src/gpu/driver.ts";
import { HandleClient } from "../src/transport/cuda-ipc.ts";
import { coordinateKey } from "../src/weights/coordinate.ts";
import { contentId, parseManifest } from "../src/weights/manifest.ts";
import { matchLayouts } from "../src/weights/match.ts";
import { PeerSource } from "../src/weights/peer.ts";
import { planTransfer } from "../src/weights/plan.ts";
import { spanBytes } from "../src/weights/tensor.ts";
import type { Emit } from "./main.ts";
import { backend, gpuCount, onPair, type PairOptions, type Report } from "./weights-pair.ts";
import { layoutOf, type SetName } from "./weights-sets.ts";

const rounds = 5;
const hbmBytesPerSecond = 4.8e12; // H200, data sheet.
const wait = { signal: AbortSignal.timeout(500_000), deadlineMs: 60_000 };

export async function run(emit: Emit): Promise<void> {
  measurePlan(emit);
  const count = await gpuCount();
  if (count < 2) {
    console.error(`weights: ${count} GPUs here, 2 needed; only the plan was measured`);
    return;
  }
  if (backend === "cuda") await measureDigest(emit);
  await measureHandshake(emit);
  for (const [set, name] of [
    ["llama70bOf8", "llama70b_tp8"],
    ["deepseekExperts", "deepseek_experts"],
  ] as const) {
    const best = await measurePair(emit, { set, name, from: "reserved", to: "reserved" });
    await measurePair(emit, { set, name: `${name}_torch`, from: "torch", to: "torch" });
    await measurePair(emit, { set, name: `${name}_reordered`, from: "reserved", to: "reversed" });
    measureNccl(emit, { set, name, ms: best });
  }
}

/** What both agents compute before the first byte moves, without the socket: 10,000 tensors. */
function measurePlan(emit: Emit): void {
  const layout = layoutOf("tenThousand", { arch: 90, dealing: "torch" });
  const digests = layout.tensors.map((_, index) => index.toString(16).padStart(32, "0"));
  const text = JSON.stringify({ ...layout, generation: 1, digests });
  const times = Array.from({ length: 2 * rounds }, () => {
    const began = performance.now();
    const manifest = parseManifest(JSON.parse(text));
    const pairs = matchLayouts(manifest, layout);
    contentId(manifest);
    planTransfer(pairs, manifest, layout, { batchBytes: 2 ** 28 });
    return performance.now() - began;
  });
  emit({ name: "weights.plan.10k_first_ms", value: times[0] ?? 0, unit: "ms" });
  emit({ name: "weights.plan.10k_ms", value: Math.min(...times), unit: "ms" });
}

async function measureHandshake(emit: Emit): Promise<void> {
  await onPair({ set: "tenThousand", from: "torch", to: "torch" }, async ({ source }) => {
    const target = layoutOf("tenThousand", { arch: 90, dealing: "reversed" });
    const key = coordinateKey(target.coordinate);
    const times: number[] = [];
    for (let round = 0; round < 2 * rounds; round += 1) {
      const began = performance.now();
      using peer = new PeerSource({
        name: source,
        connect: () => HandleClient.connect(source),
        callMsMax: 10_000,
      });
      const manifest = await peer.offer(key, wait.signal);
      const pairs = matchLayouts(manifest, target);
      contentId(manifest);
      planTransfer(pairs, manifest, target, { batchBytes: 2 ** 28 });
      const want = { generation: manifest.generation, ttlMs: 10_000, address: null };
      await using _lease = await peer.claim(key, want, wait.signal);
      times.push(performance.now() - began);
    }
    emit({ name: "weights.handshake.10k_first_ms", value: times[0] ?? 0, unit: "ms" });
    emit({ name: "weights.handshake.10k_ms", value: Math.min(...times), unit: "ms" });
  });
}

/** @returns the best round's milliseconds from handles to verified */
async function measurePair(
  emit: Emit,
  { name, ...options }: PairOptions & { readonly name: string },
): Promise<number> {
  return await onPair(options, async ({ source, target }) => {
    const reports: Report[] = [];
    for (let round = 0; round < rounds; round += 1) {
      reports.push(await target.load(source));
    }
    const best = reports.reduce((one, other) => (other.copyMs < one.copyMs ? other : one));
    const raw = backend === "fake" ? best.copyMs : await rawPeerCopy(best.bytes);
    const emitted = (what: string, value: number, unit: string) =>
      emit({ name: `weights.pair.${name}.${what}`, value, unit });
    emitted("bytes", best.bytes, "B");
    emitted("copies", best.copyCount, "copies");
    emitted("first_ms", reports[0]?.copyMs ?? 0, "ms");
    emitted("total_ms", Math.min(...reports.map(({ totalMs }) => totalMs)), "ms");
    if (best.costBytes !== null) emitted("context_bytes", best.costBytes, "B");
    emitted("gbs", best.bytes / best.copyMs / 1e6, "GB/s");
    const ratio = raw / best.copyMs;
    emit({
      name: `weights.pair.${name}.vs_peer_copy`,
      value: best.copyMs,
      unit: "ms",
      baseline: raw,
      ratio,
    });
    return best.copyMs;
  });
}

/** One copy of so many bytes from GPU 0 to GPU 1 within one process: milliseconds, best of five. */
async function rawPeerCopy(bytes: number): Promise<number> {
  await using driver = new CudaDriver();
  const from = await driver.openContext(0);
  const to = await driver.openContext(1);
  await driver.reachPeer(to.handle, from.handle);
  const source = await driver.allocate(from.handle, { bytes, sharing: "private" });
  const target = await driver.allocate(to.handle, { bytes, sharing: "private" });
  const stream = await driver.openStream(to.handle);
  const [began, ended] = [await driver.openEvent(to.handle), await driver.openEvent(to.handle)];
  const times: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    await driver.submit(stream, [
      { do: "record", event: began },
      { do: "copy", to: target.address, from: source.address, bytes },
      { do: "record", event: ended },
    ]);
    await driver.finish(stream, wait);
    times.push(await driver.elapsedMs(began, ended));
  }
  return Math.min(...times);
}

function measureNccl(
  emit: Emit,
  ours: { readonly set: SetName; readonly name: string; readonly ms: number },
): void {
  const sizes = layoutOf(ours.set, { arch: 90, dealing: "torch" }).tensors.map(spanBytes);
  const script = join(import.meta.dirname, "weights_nccl.py");
  const { stdout, status } = spawnSync("python3", [script], {
    input: JSON.stringify(sizes),
    stdio: ["pipe", "pipe", "inherit"],
    timeout: 120_000,
  });
  if (status !== 0) {
    console.error("weights: torch with NCCL did not run here; no comparison with it");
    return;
  }
  const { ms } = JSON.parse(stdout.toString()) as { ms: number };
  emit({
    name: `weights.pair.${ours.name}.vs_nccl_per_tensor`,
    value: ours.ms,
    unit: "ms",
    baseline: ms,
    ratio: ms / ours.ms,
  });
}

/** 16 GiB of random bytes in ranges of 64 MiB, against the data sheet's memory bandwidth. */
async function measureDigest(emit: Emit): Promise<void> {
  await using driver = new CudaDriver();
  const device = (await driver.devices())[0];
  if (device === undefined) return;
  const { handle } = await driver.openContext(0);
  const bytes = 16 * 2 ** 30;
  const memory = await driver.allocate(handle, { bytes, sharing: "private" });
  const ms = Math.min(...(await digestTimes(driver, { handle, device, memory })));
  const value = bytes / ms / 1e6;
  const baseline = hbmBytesPerSecond / 1e9;
  emit({ name: "weights.digest.vs_hbm", value, unit: "GB/s", baseline, ratio: value / baseline });
}

async function digestTimes(
  driver: CudaDriver,
  at16: { readonly handle: ContextHandle; readonly device: GpuDevice; readonly memory: GpuMemory },
): Promise<number[]> {
  const { handle, device, memory } = at16;
  const stream = await driver.openStream(handle);
  const first = randomBytes(2 ** 24);
  await driver.submit(stream, [{ do: "upload", to: memory.address, bytes: first }]);
  for (let done = first.byteLength; done < memory.bytes; done *= 2) {
    const copy = { to: at(memory.address, done), from: memory.address, bytes: done };
    await driver.submit(stream, [{ do: "copy", ...copy }]);
  }
  const context = { handle, multiprocessorCount: device.multiprocessorCount };
  const image = readFileSync(new URL("../kernels/build/relight.sm_90.cubin", import.meta.url));
  const rangeBytes = 64 * 2 ** 20;
  const segments = Array.from({ length: memory.bytes / rangeBytes }, (_, index) => ({
    address: at(memory.address, index * rangeBytes),
    bytes: rangeBytes,
  }));
  const digester = await GpuDigester.open(driver, context, { image, segmentCountMax: 1_024 });
  const [began, ended] = [await driver.openEvent(handle), await driver.openEvent(handle)];
  const times: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const { prepare, run } = digester.commands(segments, { seed: BigInt(round), first: 0 });
    await driver.submit(stream, [
      ...prepare,
      { do: "record", event: began },
      ...run,
      { do: "record", event: ended },
    ]);
    await driver.finish(stream, wait);
    times.push(await driver.elapsedMs(began, ended));
  }
  return times;
}
