// SPDX-License-Identifier: Apache-2.0
// The weights' half of the agent's composition root: the GPU driver, the socket at which engines of this
// node and agents of this machine speak, the server for agents of others, and sources that can be reached
// from here. The driver is found at the first transfer; without a GPU there are calls that say so.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { asRelightError } from "../errors.ts";
import { CudaDriver } from "../gpu/cuda.ts";
import { GpuDigester } from "../gpu/digest.ts";
import { fakeDigestImage, fakeDigestKernels } from "../gpu/digest-reference.ts";
import type { GpuDriver } from "../gpu/driver.ts";
import { FakeDriver } from "../gpu/fake.ts";
import { kernelImage } from "../gpu/images.ts";
import type { Log } from "../observe/log.ts";
import type { Clock } from "../platform/clock.ts";
import { makeFolders, readSmall } from "../platform/files.ts";
import { HandleClient, HandleServer } from "../transport/cuda-ipc.ts";
import { WeightHttpClient } from "../transport/weights-http-client.ts";
import { startWeightServer, type WeightHttpServer } from "../transport/weights-http-server.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import type { TransportName } from "../weights/carrier.ts";
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
  /** Where weights are served over HTTP. */
  readonly listen: { readonly host: string; readonly port: number };
  /** Where other machines reach that when it differs from `listen`. */
  readonly advertise: string | null;
  /** Threads that serve, and as many that read. */
  readonly threads: number;
  /** For all readers of one engine together; Infinity for no cap. */
  readonly bytesPerSecondMax: number;
  readonly transport: TransportName | "auto";
  /** Where a pretended GPU keeps its memory, for trials without one; null for the real ones. */
  readonly pretendGpu: string | null;
}

/** What the owner of the agent decides. */
type HostHooks = Pick<WeightHostOptions, "sourcesFor" | "lookFor" | "events" | "whenWarm">;

export interface WeightParts extends AsyncDisposable {
  /** Null for an endpoint that leads nowhere from here. */
  readonly openSource: (endpoint: string) => OpenSource | null;
  /** Opens the socket. @throws RelightError `port_in_use`, `request_invalid` for a path that is too long. */
  readonly open: (host: HostHooks) => OpenWeights;
  /** For connections from now on. */
  readonly renew: (tls: TlsMaterial) => void;
}

export interface OpenWeights extends AsyncDisposable {
  readonly socket: string;
  /** Where other agents reach this one, best first; known once the server listens, if it can. */
  readonly endpoints: () => Promise<readonly string[]>;
}

/** Engines hash what they publish at memory speed: 80 GB in well under a second. */
const digestMsMax = 120_000;
/** A reader copies at the link's speed; who is slower than this reads on and fails its digests. */
const drainMsMax = 2_000;
const leaseMs = 30_000;
const batchBytes = 256 * 2 ** 20;
/** A link that is slower is not waited for: a disk is faster. */
const bytesPerSecondMin = 2 ** 26;
/** Two GPUs that meet for the first time over NCCL take a second or more. */
const remoteCallMsMax = 20_000;
const bootIdFile = "/proc/sys/kernel/random/boot_id";

export interface WeightSurroundings {
  readonly clock: Clock;
  readonly log: Log;
  /** What is shown to agents of other machines, who must show theirs; null on loopback. */
  readonly tls: TlsMaterial | null;
}

export function openWeightParts(settings: WeightSettings, around: WeightSurroundings): WeightParts {
  const machine = readSmall(bootIdFile, 256)?.toString("latin1").trim() ?? "unknown";
  const client = new WeightHttpClient({ threads: settings.threads, tls: around.tls });
  const servers = new Set<WeightHttpServer>();
  let { tls } = around;
  const openSource = (endpoint: string) => openEndpoint(endpoint, { machine, client, settings });
  return {
    openSource,
    open: (host) =>
      openSocket(host, { ...around, settings, machine, openSource, servers, tls: () => tls }),
    renew: (material) => {
      tls = material;
      client.renew(material);
      for (const server of servers) server.renew(material);
    },
    [Symbol.asyncDispose]: () => client[Symbol.asyncDispose](),
  };
}

interface Opening extends Omit<WeightSurroundings, "tls"> {
  /** The newest. */
  readonly tls: () => TlsMaterial | null;
  readonly settings: WeightSettings;
  readonly machine: string;
  readonly openSource: WeightParts["openSource"];
  /** Those that listen. */
  readonly servers: Set<WeightHttpServer>;
}

function openSocket(host: HostHooks, opening: Opening): OpenWeights {
  const { settings, machine, clock, openSource } = opening;
  const device = openDevice(settings.pretendGpu);
  const { readersMax, loadMsMax, busyMsMax, silenceMsMax, bytesPerSecondMax } = settings;
  const place = settings.socket === null ? ownPlace() : givenPlace(settings.socket);
  const endpoint = `unix://${machine}${encodeURI(place.socket)}`;
  const served: { server: WeightHttpServer | null } = { server: null };
  const reached = () => settings.advertise ?? served.server?.endpoint ?? null;
  const weights = new WeightHost({
    ...host,
    openSource,
    address: () => endpoint,
    httpEndpoint: reached,
    bytesPerSecondMax,
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
  const sockets = new HandleServer(place.socket, () => weights.open());
  const listening = serve(weights, opening).then((server) => {
    served.server = server;
  });
  return {
    socket: place.socket,
    endpoints: async () => {
      await listening;
      const http = served.server === null ? null : reached();
      return http === null ? [endpoint] : [endpoint, http];
    },
    [Symbol.asyncDispose]: async () => {
      sockets[Symbol.dispose]();
      place[Symbol.dispose]();
      await listening;
      if (served.server !== null) opening.servers.delete(served.server);
      await served.server?.[Symbol.asyncDispose]();
      await weights[Symbol.asyncDispose]();
      await device.driver[Symbol.asyncDispose]();
    },
  };
}

/** Null where nothing can listen: agents of this machine have the socket, and nobody else is sent here. */
async function serve(
  weights: WeightHost,
  { settings, tls, log, servers }: Opening,
): Promise<WeightHttpServer | null> {
  const { listen, threads } = settings;
  const shown = tls();
  const source = weights.openReaders();
  try {
    const server = await startWeightServer({ ...listen, threads, tls: shown, source });
    servers.add(server);
    // A node may have joined its fleet while the threads started.
    const newest = tls();
    if (newest !== null && newest !== shown) server.renew(newest);
    return server;
  } catch (thrown) {
    const { code, message } = asRelightError(thrown);
    log.warn("failure", { code, message });
    return null;
  }
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

/**
 * A path, as engines name it, `unix://BOOT-ID/path` or `http(s)://host:port`, as the coordinator does. The
 * seeds' variables name the last without saying who must answer there, which only loopback allows.
 */
function openEndpoint(
  endpoint: string,
  from: {
    readonly machine: string;
    readonly client: WeightHttpClient;
    readonly settings: WeightSettings;
  },
): OpenSource | null {
  const { machine, client, settings } = from;
  const { transport, callMsMax } = settings;
  const common = { name: endpoint, transport };
  if (/^https?:/.test(endpoint)) {
    const link = () => client.link(endpoint);
    const open = { connect: link, openRanges: link, callMsMax: remoteCallMsMax };
    return new PeerSource({ ...common, ...open });
  }
  // Who wants a network between the two goes by the address that says who must answer there.
  const isForMemory = transport === "auto" || transport === "cuda-ipc";
  const told = isForMemory ? socketOf(endpoint, machine) : null;
  const socket = endpoint.startsWith("/") ? endpoint : told;
  if (socket === null) return null;
  const connect = () => HandleClient.connect(socket);
  const openRanges = (http: string) => client.link(http);
  return new PeerSource({ ...common, connect, openRanges, callMsMax });
}

/** Null for a socket of another machine: its path may exist here and be somebody else's. */
function socketOf(endpoint: string, machine: string): string | null {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : null;
  if (url?.protocol !== "unix:" || url.host !== machine) return null;
  return decodeURIComponent(url.pathname);
}
