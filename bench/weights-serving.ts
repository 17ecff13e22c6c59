// SPDX-License-Identifier: Apache-2.0
// What a serving engine feels of being read: matrix products on the source's GPU without a pause, while
// another GPU reads its weights again and again, as fast as it can and with caps.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Command, GpuDriver } from "../src/gpu/driver.ts";
import { systemClock } from "../src/platform/clock.ts";
import { HandleClient } from "../src/transport/cuda-ipc.ts";
import { stayOnDevice } from "../src/weights/device.ts";
import type { WeightManifest } from "../src/weights/manifest.ts";
import { Pacer } from "../src/weights/pacer.ts";
import { PeerSource } from "../src/weights/peer.ts";
import { openDriver } from "../test/contracts/weights-agent.ts";
import type { Emit } from "./main.ts";
import { backend, inFleet, LineProcess } from "./weights-pair.ts";

const seconds = 2;
const gibibytes = 8;
const never = new AbortController().signal;
const caps = [null, 200e9, 100e9, 50e9, 20e9] as const;

export async function run(emit: Emit): Promise<void> {
  await inFleet({ agent: {}, count: 1 }, async (fleet) => {
    const python = join(import.meta.dirname, "../python");
    const script = join(import.meta.dirname, "weights_gemm.py");
    const busy = new LineProcess(["python3", script, fleet.socket(0), `${gibibytes}`], {
      PYTHONPATH: python,
      PYTHONDONTWRITEBYTECODE: "1",
    });
    try {
      const { key } = JSON.parse(await busy.line()) as { key: string };
      const alone = await product(busy);
      emit({ name: "weights.source_slowdown.alone_ms", value: alone, unit: "ms" });
      for (const cap of caps) {
        const stop = new AbortController();
        const reading = readOn({ socket: fleet.socket(0), key, cap }, stop.signal);
        const ms = await product(busy);
        stop.abort();
        const { gbs } = await reading;
        const name = `weights.source_slowdown.${cap === null ? "uncapped" : `cap_${cap / 1e9}gbs`}`;
        emit({ name, value: 100 * (ms / alone - 1), unit: "%" });
        emit({ name: `${name}.read_gbs`, value: gbs, unit: "GB/s" });
      }
      const again = await product(busy);
      emit({ name: "weights.source_slowdown.noise", value: 100 * (again / alone - 1), unit: "%" });
    } finally {
      await busy.end();
    }
  });
}

async function product(busy: LineProcess): Promise<number> {
  busy.say(`${seconds}`);
  return (JSON.parse(await busy.line()) as { ms: number }).ms;
}

/** Reads all the source's weights to GPU 1, over and over, until it is stopped. */
async function readOn(
  from: { readonly socket: string; readonly key: string; readonly cap: number | null },
  signal: AbortSignal,
): Promise<{ readonly gbs: number }> {
  const directory = mkdtempSync(join(tmpdir(), "relight-bench-"));
  const connect = () => HandleClient.connect(from.socket);
  try {
    await using driver = openDriver({ backend, directory });
    using peer = new PeerSource({ name: from.socket, connect, callMsMax: 10_000 });
    const manifest = await peer.offer(from.key, never);
    const want = { generation: manifest.generation, ttlMs: 60_000, address: null };
    await using lease = await peer.claim(from.key, want, never);
    const uuid = (await driver.devices())[1]?.uuid ?? "";
    return await stayOnDevice(driver, uuid, async (stay) => {
      await using carrier = await lease.open({ driver, stay }, never);
      return await readAgain(
        { driver, context: stay.context, carrier, manifest },
        from.cap,
        signal,
      );
    });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function readAgain(
  parts: {
    readonly driver: GpuDriver;
    readonly context: Parameters<GpuDriver["openStream"]>[0];
    readonly carrier: Awaited<ReturnType<Awaited<ReturnType<PeerSource["claim"]>>["open"]>>;
    readonly manifest: WeightManifest;
  },
  cap: number | null,
  signal: AbortSignal,
): Promise<{ readonly gbs: number }> {
  const { driver, context, carrier, manifest } = parts;
  const bytes = Math.max(...manifest.allocations.map((one) => one.bytes));
  const into = await driver.allocate(context, { bytes, sharing: "private" });
  const stream = await driver.openStream(context);
  const event = await driver.openEvent(context);
  const pacer = new Pacer(systemClock, () => cap ?? Number.POSITIVE_INFINITY);
  const wait = { signal: never, deadlineMs: 60_000 };
  let read = 0;
  let began = performance.now();
  for (let index = 0; !signal.aborted; index += 1) {
    const tensor = manifest.tensors[index % manifest.tensors.length];
    const rowBytes = tensor?.shape[0] ?? 0;
    const region = { allocation: tensor?.allocation ?? 0, offsetBytes: tensor?.offsetBytes ?? 0 };
    const copy = {
      from: region,
      to: region,
      rowBytes,
      rows: 1,
      fromPitchBytes: rowBytes,
      toPitchBytes: rowBytes,
    };
    await pacer.pass(rowBytes, never);
    const after: Command[] = [{ do: "record", event }];
    await carrier.bring({ copies: [{ copy, to: into.address }], stream, after }, wait);
    if (index % 4 === 3) await driver.reach(event, wait);
    // What the first reads map is not what is measured.
    if (index < manifest.tensors.length) began = performance.now();
    else read += rowBytes;
  }
  return { gbs: read / (performance.now() - began) / 1e6 };
}
