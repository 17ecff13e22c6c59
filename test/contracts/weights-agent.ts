// SPDX-License-Identifier: Apache-2.0
// An agent that does nothing but weights, on one Unix socket. As a module it runs in the test's process;
// run directly it is a process of its own, for tests that kill it. Argument: AgentArguments as JSON.

import { readFileSync } from "node:fs";
import { CudaDriver } from "../../src/gpu/cuda.ts";
import { GpuDigester } from "../../src/gpu/digest.ts";
import { fakeDigestImage, fakeDigestKernels } from "../../src/gpu/digest-reference.ts";
import type { GpuDriver } from "../../src/gpu/driver.ts";
import { FakeDriver } from "../../src/gpu/fake.ts";
import { systemClock } from "../../src/platform/clock.ts";
import { HandleClient, HandleServer } from "../../src/transport/cuda-ipc.ts";
import type { Stay } from "../../src/weights/device.ts";
import { WeightHost } from "../../src/weights/host.ts";
import { PeerSource } from "../../src/weights/peer.ts";
import type { PullLimits } from "../../src/weights/pull.ts";

export interface AgentArguments {
  readonly backend: "cuda" | "fake";
  readonly socket: string;
  /** Where the fake's memory lies. */
  readonly directory: string;
  /** The fake's copy speed. */
  readonly bytesPerSecond?: number;
  readonly readersMax?: number;
  /** How long a load comes back to busy sources; by default not at all. */
  readonly busyMsMax?: number;
  readonly limits?: Partial<PullLimits>;
  /** Whether others may read what a load here has verified so far; by default they may. */
  readonly isRelay?: boolean;
}

export const testLimits: PullLimits = {
  batchBytes: 256 * 2 ** 20,
  leaseMs: 30_000,
  bytesPerSecondMax: Number.POSITIVE_INFINITY,
  bytesPerSecondMin: 2 ** 20,
  silenceMsMax: 10_000,
};

export function openDriver({
  backend,
  directory,
  bytesPerSecond,
}: Pick<AgentArguments, "backend" | "directory" | "bytesPerSecond">): GpuDriver {
  if (backend === "cuda") return new CudaDriver();
  return new FakeDriver({
    directory,
    kernels: fakeDigestKernels,
    ...(bytesPerSecond === undefined ? {} : { bytesPerSecond }),
  });
}

export function digestImage(backend: "cuda" | "fake"): Uint8Array {
  if (backend === "fake") return fakeDigestImage;
  return readFileSync(new URL("../../kernels/build/relight.sm_90.cubin", import.meta.url));
}

export class TestAgent implements AsyncDisposable {
  readonly host: WeightHost;
  readonly #driver: GpuDriver;
  readonly #server: HandleServer;

  constructor(given: AgentArguments) {
    const driver = openDriver(given);
    this.#driver = driver;
    this.host = new WeightHost({
      parts: {
        driver,
        clock: systemClock,
        openDigester: (stay: Stay, segmentCountMax: number) =>
          GpuDigester.open(
            driver,
            { handle: stay.context, multiprocessorCount: stay.device.multiprocessorCount },
            { image: digestImage(given.backend), segmentCountMax },
          ),
      },
      readersMax: given.readersMax ?? 4,
      limits: { ...testLimits, ...given.limits },
      digestMsMax: 30_000,
      drainMsMax: 500,
      loadMsMax: 120_000,
      busyMsMax: given.busyMsMax ?? 0,
      address: () => (given.isRelay === false ? null : given.socket),
      openSource: peerAt,
      sourcesFor: async ({ hints }) => {
        const peers = hints.map(peerAt);
        return {
          sources: peers,
          [Symbol.dispose]: () => {
            for (const peer of peers) peer[Symbol.dispose]();
          },
        };
      },
    });
    this.#server = new HandleServer(given.socket, () => this.host.open());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server[Symbol.dispose]();
    await this.host[Symbol.asyncDispose]();
    await this.#driver[Symbol.asyncDispose]();
  }
}

function peerAt(path: string): PeerSource {
  const connect = () => HandleClient.connect(path);
  return new PeerSource({ name: path, connect, callMsMax: 2_000 });
}

if (import.meta.main) {
  const agent = new TestAgent(JSON.parse(process.argv[2] ?? "{}") as AgentArguments);
  process.stdin.on("end", () => void agent[Symbol.asyncDispose]().then(() => process.exit(0)));
  process.stdin.resume();
  process.stdout.write("ready\n");
}
