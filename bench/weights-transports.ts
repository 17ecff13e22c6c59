// SPDX-License-Identifier: Apache-2.0
// Weights where no memory is shared: over HTTP against the slower of a pinned copy and raw loopback, and
// through NCCL over sockets. Both ends run on one machine, so the processor does both ends' work.

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import type { GpuDriver } from "../src/gpu/driver.ts";
import { openDriver } from "../test/contracts/weights-agent.ts";
import type { Emit } from "./main.ts";
import { backend, gpuCount, onPair, type Report } from "./weights-pair.ts";

const wait = { signal: AbortSignal.timeout(500_000), deadlineMs: 60_000 };
const rounds = 3;
const slotBytes = 8 * 2 ** 20;

export async function run(emit: Emit): Promise<void> {
  const library = process.env["RELIGHT_WEIGHTS_NCCL_LIBRARY"];
  const directory = mkdtempSync(join(tmpdir(), "relight-bench-"));
  try {
    await measureHttp(emit, directory);
    if ((await gpuCount()) > 1)
      await measureNccl(emit, library === undefined ? {} : { ncclLibrary: library });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function measureHttp(emit: Emit, directory: string): Promise<void> {
  const threads = Math.max(1, Math.floor(cpus().length * 0.35));
  const agent = { transport: "http", threads, limits: { batchBytes: 2 ** 28 } } as const;
  const ways = { set: "llama70bOf8", from: "reserved", to: "reserved", agent } as const;
  const best = await onPair(ways, ({ source, target }) => bestOf(() => target.load(source)));
  const gbs = best.bytes / best.copyMs / 1e6;
  const pinned = await pinnedCopy(directory);
  const loopback = rawLoopback();
  emit({ name: "weights.http.pinned_copy_gbs", value: pinned, unit: "GB/s" });
  emit({ name: "weights.http.threads", value: threads, unit: "threads" });
  if (loopback === null) return;
  emit({ name: "weights.http.loopback_gbs", value: loopback.gbs, unit: "GB/s" });
  emit({ name: "weights.http.loopback_streams", value: loopback.streams, unit: "streams" });
  const baseline = Math.min(pinned, loopback.gbs);
  emit({
    name: "weights.http.vs_limit",
    value: gbs,
    unit: "GB/s",
    baseline,
    ratio: gbs / baseline,
  });
}

/** @param libraries where libnccl is */
async function measureNccl(
  emit: Emit,
  libraries: { readonly ncclLibrary?: string },
): Promise<void> {
  const sockets = { NCCL_P2P_DISABLE: "1", NCCL_SHM_DISABLE: "1", NCCL_SOCKET_IFNAME: "lo" };
  for (const [name, env, set] of [
    ["weights.nccl_sockets", sockets, "llamaEightLayers"],
    ["weights.nccl_nvlink", {}, "llama70bOf8"],
  ] as const) {
    const agent = {
      transport: "nccl",
      ...libraries,
      env: { ...env, NCCL_NVLS_ENABLE: "0" },
    } as const;
    const best = await onPair(
      { set, from: "reserved", to: "reserved", agent },
      ({ source, target }) => bestOf(() => target.load(source)),
    );
    emit({ name: `${name}.gbs`, value: best.bytes / best.copyMs / 1e6, unit: "GB/s" });
    emit({ name: `${name}.bytes`, value: best.bytes, unit: "B" });
    emit({ name: `${name}.total_ms`, value: best.totalMs, unit: "ms" });
  }
}

async function bestOf(load: () => Promise<Report>): Promise<Report> {
  let best = await load();
  for (let round = 1; round < rounds; round += 1) {
    const next = await load();
    if (next.copyMs < best.copyMs) best = next;
  }
  return best;
}

/** GB/s of the slower direction between GPU 0 and pinned memory, in pieces as they travel. */
async function pinnedCopy(directory: string): Promise<number> {
  await using driver: GpuDriver = openDriver({ backend, directory });
  const { handle } = await driver.openContext(0);
  const count = backend === "fake" ? 2 : 64;
  const { handle: host } = await driver.shareHost(handle, count * slotBytes);
  const memory = await driver.allocate(handle, { bytes: slotBytes, sharing: "private" });
  const stream = await driver.openStream(handle);
  const [began, ended] = [await driver.openEvent(handle), await driver.openEvent(handle)];
  const rates: number[] = [];
  for (const way of ["to_host", "from_host"] as const) {
    let bestMs = Number.POSITIVE_INFINITY;
    for (let round = 0; round < rounds; round += 1) {
      const copies = Array.from({ length: count }, (_, index) => {
        const at = { host, offsetBytes: index * slotBytes, bytes: slotBytes };
        return way === "to_host"
          ? ({ do: way, from: memory.address, ...at } as const)
          : ({ do: way, to: memory.address, ...at } as const);
      });
      const marked = [
        { do: "record", event: began } as const,
        ...copies,
        { do: "record", event: ended } as const,
      ];
      await driver.submit(stream, marked);
      await driver.finish(stream, wait);
      bestMs = Math.min(bestMs, await driver.elapsedMs(began, ended));
    }
    rates.push((count * slotBytes) / bestMs / 1e6);
  }
  return Math.min(...rates);
}

function rawLoopback(): { readonly gbs: number; readonly streams: number } | null {
  const counts = [8, 16, 24].filter((count) => count <= cpus().length);
  const { stdout, status } = spawnSync(
    "python3",
    [join(import.meta.dirname, "weights_loopback.py")],
    {
      input: JSON.stringify(counts.length === 0 ? [1] : counts),
      stdio: ["pipe", "pipe", "inherit"],
      timeout: 90_000,
    },
  );
  return status === 0 ? JSON.parse(stdout.toString()) : null;
}
