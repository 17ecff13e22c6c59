// SPDX-License-Identifier: Apache-2.0
// The weights' half of the agent's composition root: the GPU driver, the socket at which engines of this
// node and agents of this machine speak, and sources that can be reached from here. The driver is found
// at the first transfer; a machine without a GPU has a socket whose calls say so.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { CudaDriver } from "../gpu/cuda.ts";
import { GpuDigester } from "../gpu/digest.ts";
import { fakeDigestImage, fakeDigestKernels } from "../gpu/digest-reference.ts";
import type { GpuDriver } from "../gpu/driver.ts";
import { FakeDriver } from "../gpu/fake.ts";
import { kernelImage } from "../gpu/images.ts";
import type { Clock } from "../platform/clock.ts";
import { makeFolders, readSmall } from "../platform/files.ts";
import { HandleClient, HandleServer } from "../transport/cuda-ipc.ts";
import { WeightHost } from "../weights/host.ts";
import type { WeightHostOptions } from "../weights/host-session.ts";
import { PeerSource } from "../weights/peer.ts";
import type { DeviceParts } from "../weights/publish.ts";
import type { OpenSource } from "./weight-finder.ts";

export interface WeightSettings {
  /** Of the Unix socket; null for one of this process's own. */
  readonly socket: string | null;
  readonly readersMax: number;
  readonly loadMsMax: number;
  readonly busyMsMax: number;
  readonly callMsMax: number;
  readonly silenceMsMax: number;
  /** Where a pretended GPU keeps its memory, for trials without one; null for the real ones. */
  readonly pretendGpu: string | null;
}

/** What the owner of the agent decides. */
type HostHooks = Pick<WeightHostOptions, "sourcesFor" | "lookFor" | "events" | "whenWarm">;

export interface WeightParts {
  /** Null for an endpoint that leads nowhere from here. */
  readonly openSource: (endpoint: string) => OpenSource | null;
  /** Opens the socket. @throws RelightError `port_in_use`, `request_invalid` for a path that is too long. */
  readonly open: (host: HostHooks) => OpenWeights;
}

export interface OpenWeights extends AsyncDisposable {
  readonly socket: string;
  /** Where other agents of this machine reach the socket. */
  readonly endpoint: string;
}

/** Engines hash what they publish at memory speed: 80 GB in well under a second. */
const digestMsMax = 120_000;
/** A reader copies at the link's speed; who is slower than this reads on and fails its digests. */
const drainMsMax = 2_000;
const leaseMs = 30_000;
const batchBytes = 256 * 2 ** 20;
/** Slower than any link between GPUs of one machine. */
const bytesPerSecondMin = 2 ** 30;
const bootIdFile = "/proc/sys/kernel/random/boot_id";

export function openWeightParts(settings: WeightSettings, clock: Clock): WeightParts {
  const machine = readSmall(bootIdFile, 256)?.toString("latin1").trim() ?? "unknown";
  const openSource = (endpoint: string) => openEndpoint(endpoint, machine, settings.callMsMax);
  return { openSource, open: (host) => openSocket(host, { settings, machine, clock, openSource }) };
}

function openSocket(
  host: HostHooks,
  {
    settings,
    machine,
    clock,
    openSource,
  }: {
    readonly settings: WeightSettings;
    readonly machine: string;
    readonly clock: Clock;
    readonly openSource: WeightParts["openSource"];
  },
): OpenWeights {
  const device = openDevice(settings.pretendGpu);
  const { readersMax, loadMsMax, busyMsMax, silenceMsMax } = settings;
  const place = settings.socket === null ? ownPlace() : givenPlace(settings.socket);
  const endpoint = `unix://${machine}${encodeURI(place.socket)}`;
  const weights = new WeightHost({
    ...host,
    openSource,
    address: () => endpoint,
    parts: { ...device, clock },
    readersMax,
    loadMsMax,
    busyMsMax,
    digestMsMax,
    drainMsMax,
    limits: {
      batchBytes,
      leaseMs,
      bytesPerSecondMin,
      silenceMsMax,
      bytesPerSecondMax: Number.POSITIVE_INFINITY,
    },
  });
  const server = new HandleServer(place.socket, () => weights.open());
  return {
    socket: place.socket,
    endpoint,
    [Symbol.asyncDispose]: async () => {
      server[Symbol.dispose]();
      place[Symbol.dispose]();
      await weights[Symbol.asyncDispose]();
      await device.driver[Symbol.asyncDispose]();
    },
  };
}

function openDevice(pretendGpu: string | null): DeviceParts {
  if (pretendGpu === null) return device(new CudaDriver(), (arch) => kernelImage(arch));
  makeFolders(pretendGpu, 0o700);
  const driver = new FakeDriver({ directory: pretendGpu, kernels: fakeDigestKernels });
  return device(driver, () => fakeDigestImage);
}

function device(driver: GpuDriver, imageFor: (arch: number) => Uint8Array): DeviceParts {
  return {
    driver,
    openDigester: ({ context, device: { multiprocessorCount, arch } }, segmentCountMax) =>
      GpuDigester.open(
        driver,
        { handle: context, multiprocessorCount },
        { image: imageFor(arch), segmentCountMax },
      ),
  };
}

interface Place extends Disposable {
  readonly socket: string;
}

/** A folder that nobody else may look into, gone with the process. */
function ownPlace(): Place {
  const folder = mkdtempSync(path.join(tmpdir(), "relight-"));
  return {
    socket: path.join(folder, "agent.sock"),
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  };
}

function givenPlace(socket: string): Place {
  makeFolders(path.dirname(socket), 0o700);
  return { socket, [Symbol.dispose]: () => {} };
}

/** A path, as engines name it, or `unix://BOOT-ID/path`, as the coordinator does. */
function openEndpoint(endpoint: string, machine: string, callMsMax: number): OpenSource | null {
  const socket = endpoint.startsWith("/") ? endpoint : socketOf(endpoint, machine);
  if (socket === null) return null;
  return new PeerSource({ name: endpoint, connect: () => HandleClient.connect(socket), callMsMax });
}

/** Null for a socket of another machine: its path may exist here and be somebody else's. */
function socketOf(endpoint: string, machine: string): string | null {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : null;
  if (url?.protocol !== "unix:" || url.host !== machine) return null;
  return decodeURIComponent(url.pathname);
}
