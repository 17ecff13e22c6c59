// SPDX-License-Identifier: Apache-2.0
// An agent that does nothing but weights, on one Unix socket and, if wanted, over HTTP. As a module it runs in the test's process;
// run directly it is a process of its own, for tests that kill it. Argument: AgentArguments as JSON.

import { readFileSync } from "node:fs";
import { CudaDriver } from "../../src/gpu/cuda.ts";
import { GpuDigester } from "../../src/gpu/digest.ts";
import { fakeDigestImage, fakeDigestKernels } from "../../src/gpu/digest-reference.ts";
import type { GpuDriver } from "../../src/gpu/driver.ts";
import { FakeDriver } from "../../src/gpu/fake.ts";
import { systemClock } from "../../src/platform/clock.ts";
import { HandleClient, HandleServer } from "../../src/transport/cuda-ipc.ts";
import { WeightHttpClient } from "../../src/transport/weights-http-client.ts";
import {
  startWeightServer,
  type WeightHttpServer,
} from "../../src/transport/weights-http-server.ts";
import type { TransportName } from "../../src/weights/carrier.ts";
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
  /** How bytes come; by default from memory that both map. Over HTTP agents see nothing but HTTP. */
  readonly transport?: TransportName;
  /** Threads that serve and read over HTTP. */
  readonly threads?: number;
  /** What all readers together may take while this serves. */
  readonly servedBytesPerSecondMax?: number;
  /** Where libnccl is. */
  readonly ncclLibrary?: string;
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
  ncclLibrary,
}: Pick<AgentArguments, "backend" | "directory" | "bytesPerSecond" | "ncclLibrary">): GpuDriver {
  if (backend === "cuda") return new CudaDriver(ncclLibrary === undefined ? {} : { ncclLibrary });
  return new FakeDriver({
    directory,
    deviceCount: 4,
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
  /** Resolves when it can be reached. */
  readonly ready: Promise<void>;
  readonly #given: AgentArguments;
  readonly #driver: GpuDriver;
  readonly #server: HandleServer;
  readonly #client: WeightHttpClient;
  #http: WeightHttpServer | null = null;

  constructor(given: AgentArguments) {
    const driver = openDriver(given);
    this.#given = given;
    this.#driver = driver;
    this.#client = new WeightHttpClient({ threads: given.threads ?? 1 });
    const { servedBytesPerSecondMax } = given;
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
      address: () => (given.isRelay === false ? null : this.address),
      openSource: (address) => this.#peer(address),
      httpEndpoint: () => this.#http?.endpoint ?? null,
      servedRangesMax: 4 * (given.threads ?? 1),
      ...(servedBytesPerSecondMax === undefined
        ? {}
        : { bytesPerSecondMax: servedBytesPerSecondMax }),
      sourcesFor: async ({ hints }) => {
        const peers = hints.map((hint) => this.#peer(hint));
        return {
          sources: peers,
          [Symbol.dispose]: () => {
            for (const peer of peers) peer[Symbol.dispose]();
          },
        };
      },
    });
    this.#server = new HandleServer(given.socket, () => this.host.open());
    this.ready = this.#serve();
  }

  /** Where other agents find it. */
  get address(): string {
    return this.#http?.endpoint ?? this.#given.socket;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.ready;
    this.#server[Symbol.dispose]();
    await this.#http?.[Symbol.asyncDispose]();
    await this.#client[Symbol.asyncDispose]();
    await this.host[Symbol.asyncDispose]();
    await this.#driver[Symbol.asyncDispose]();
  }

  async #serve(): Promise<void> {
    if (this.#given.transport !== "http") return;
    this.#http = await startWeightServer({
      host: "127.0.0.1",
      port: 0,
      threads: this.#given.threads ?? 1,
      source: this.host.openReaders(),
    });
  }

  #peer(address: string): PeerSource {
    const { transport = "cuda-ipc" } = this.#given;
    const connect = () =>
      address.startsWith("/") ? HandleClient.connect(address) : this.#client.link(address);
    const openRanges = (endpoint: string) => this.#client.link(endpoint);
    // Two GPUs that meet for the first time take a second.
    const callMsMax = transport === "nccl" ? 20_000 : 2_000;
    return new PeerSource({ name: address, connect, callMsMax, transport, openRanges });
  }
}

if (import.meta.main) {
  const agent = new TestAgent(JSON.parse(process.argv[2] ?? "{}") as AgentArguments);
  process.stdin.on("end", () => void agent[Symbol.asyncDispose]().then(() => process.exit(0)));
  process.stdin.resume();
  await agent.ready;
  process.stdout.write(`ready ${agent.address}\n`);
}
