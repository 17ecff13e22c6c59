// SPDX-License-Identifier: Apache-2.0
// From a layout that an engine handed over to a manifest that others may rely on: every tensor's digest,
// computed on the GPU from the live bytes.

import type { GpuDriver, MemoryHandle, Wait } from "../gpu/driver.ts";
import { type Stay, stayOnDevice } from "./device.ts";
import { type Digester, digestsByTensor, placeCount, segmentsOf } from "./digests.ts";
import { digestSeed, type WeightLayout, type WeightManifest } from "./manifest.ts";

export interface DeviceParts {
  readonly driver: GpuDriver;
  /** A digester of the stay's context, for so many ranges. It is released with the context. */
  readonly openDigester: (stay: Stay, segmentCountMax: number) => Promise<Digester>;
}

/** Memory of an engine in another process, by allocation of its layout. */
export interface EngineMemory {
  readonly deviceUuid: string;
  readonly handles: readonly MemoryHandle[];
}

export interface Published {
  readonly manifest: WeightManifest;
  readonly costBytes: number | null;
}

/** @throws device_handle_invalid, device_memory, device_unsupported, deadline_exceeded */
export async function digestLayout(
  parts: DeviceParts,
  { layout, memory }: { readonly layout: WeightLayout; readonly memory: EngineMemory },
  { generation, wait }: { readonly generation: number; readonly wait: Wait },
): Promise<Published> {
  const { driver } = parts;
  return await stayOnDevice(driver, memory.deviceUuid, async (stay) => {
    const count = placeCount(layout.tensors);
    const digests = count === 0 ? [] : await digestRanges(parts, stay, { layout, memory, wait });
    const manifest = {
      ...layout,
      generation,
      digests: digestsByTensor(layout.tensors, digests),
    };
    return { manifest, costBytes: stay.costBytes };
  });
}

// A launch's table is built on the event loop; this many ranges keep a turn under about 10 ms.
const tensorsPerLaunch = 2_000;

async function digestRanges(
  { driver, openDigester }: DeviceParts,
  stay: Stay,
  job: { readonly layout: WeightLayout; readonly memory: EngineMemory; readonly wait: Wait },
): Promise<string[]> {
  const { tensors } = job.layout;
  const count = placeCount(tensors);
  const digester = await openDigester(stay, count);
  const stream = await driver.openStream(stay.context);
  const seed = digestSeed(job.layout);
  let first = 0;
  for (let from = 0; from < tensors.length; from += tensorsPerLaunch) {
    const segments = [];
    for (const tensor of tensors.slice(from, from + tensorsPerLaunch)) {
      if (placeCount([tensor]) === 0) continue;
      const base = await stay.addressOf(job.memory.handles, tensor.allocation);
      segments.push(...segmentsOf(tensor, base));
    }
    const { prepare, run, collect } = digester.commands(segments, { seed, first });
    await driver.submit(stream, [...prepare, ...run, ...collect]);
    first += segments.length;
  }
  await driver.finish(stream, job.wait);
  return digester.collected({ first: 0, count });
}
