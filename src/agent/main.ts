// SPDX-License-Identifier: Apache-2.0
// The agent's composition root: the only file of agent/ that names implementations of the ports.

import type { Sealer } from "../artifacts/sealer.ts";
import { startSealer } from "../artifacts/sealer.ts";
import { RelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import { type Clock, systemClock } from "../platform/clock.ts";
import { startDeadline } from "../platform/deadline.ts";
import { startHttpFetcher } from "../transport/http-fetcher.ts";
import { startHttpServer } from "../transport/http-server.ts";
import type { PieceFetcher, PieceServer } from "../transport/transport.ts";
import { type ClaimCache, claimCache } from "./claimed-cache.ts";
import { connectCoordinator } from "./coordinator-client.ts";
import { NodeLink } from "./node-link.ts";
import { openTrust, type TrustSettings } from "./open-trust.ts";
import type { ArtifactTrust } from "./trust.ts";

export interface AgentSettings {
  readonly nodeId: string;
  /** Unique among the processes of the fleet. */
  readonly workerId: string;
  /** host:port of the coordinator. */
  readonly coordinator: string;
  readonly listen: { readonly host: string; readonly port: number };
  /** Where peers reach us when that differs from `listen`. */
  readonly advertise: string | null;
  readonly readersMax: number;
  readonly threads: number;
  readonly silenceMsMax: number;
  readonly connectMsMax: number;
  readonly trust: TrustSettings;
}

export interface AgentParts extends AsyncDisposable {
  readonly link: NodeLink;
  readonly server: PieceServer;
  readonly fetcher: PieceFetcher;
  readonly sealer: Sealer;
  readonly claim: ClaimCache;
  readonly trust: ArtifactTrust;
  readonly clock: Clock;
  readonly random: () => number;
}

/** Setting up trust reads a few small files; another process may hold their lock. */
const trustMsMax = 5_000;

/**
 * Opens the byte server; the coordinator is called only when there is something to ask or say.
 * @throws RelightError `config_invalid` where trust is switched off and others could reach this agent.
 */
export async function openAgent(settings: AgentSettings, log: Log): Promise<AgentParts> {
  refuseOpenDoors(settings);
  const trust = await openAgentTrust(settings, log);
  const server = await startHttpServer({
    ...settings.listen,
    threads: settings.threads,
    limits: { readersMax: settings.readersMax },
    events: {
      fileChanged: (artifactId, fileIndex) => log.info("file_changed", { artifactId, fileIndex }),
    },
  });
  const { connectMsMax, silenceMsMax } = settings;
  const fetcher = startHttpFetcher({
    threads: settings.threads,
    limits: { connectMsMax, silenceMsMax },
  });
  const sealer = startSealer();
  const client = connectCoordinator({ address: settings.coordinator, timeoutMs: connectMsMax });
  const link = new NodeLink({
    client,
    server,
    nodeId: settings.nodeId,
    workerId: settings.workerId,
    endpoint: settings.advertise ?? server.endpoint,
    callMsMax: connectMsMax,
    clock: systemClock,
    log,
  });
  return {
    link,
    server,
    fetcher,
    sealer,
    claim: claimCache,
    trust,
    clock: systemClock,
    random: Math.random,
    [Symbol.asyncDispose]: async () => {
      await link[Symbol.asyncDispose]();
      await Promise.all([server, fetcher, sealer].map((part) => part[Symbol.asyncDispose]()));
    },
  };
}

async function openAgentTrust({ trust, nodeId }: AgentSettings, log: Log): Promise<ArtifactTrust> {
  using deadline = startDeadline("setting up trust", trustMsMax);
  return await openTrust(trust, { nodeId, clock: systemClock, log, signal: deadline.signal });
}

/** What installs anything from anybody stays on this machine. */
function refuseOpenDoors({ trust, listen, advertise }: AgentSettings): void {
  const hosts = [listen.host, ...(advertise === null ? [] : [new URL(advertise).hostname])];
  const open = hosts.find((host) => !isLoopback(host));
  if (trust.mode !== "insecure" || open === undefined) return;
  throw new RelightError(
    "config_invalid",
    `Cannot listen on "${open}" with --trust=insecure: want an address of loopback`,
  );
}

function isLoopback(host: string): boolean {
  return /^(localhost|127(\.\d{1,3}){3}|\[?::1\]?)$/.test(host);
}
