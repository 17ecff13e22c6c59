// SPDX-License-Identifier: Apache-2.0
// The agent's composition root: the only file of agent/ that names implementations of the ports.

import type { Sealer } from "../artifacts/sealer.ts";
import { startSealer } from "../artifacts/sealer.ts";
import type { Log } from "../observe/log.ts";
import { type Clock, systemClock } from "../platform/clock.ts";
import { startHttpFetcher } from "../transport/http-fetcher.ts";
import { startHttpServer } from "../transport/http-server.ts";
import type { PieceFetcher, PieceServer } from "../transport/transport.ts";
import { type ClaimCache, claimCache } from "./claimed-cache.ts";
import { connectCoordinator } from "./coordinator-client.ts";
import { NodeLink } from "./node-link.ts";

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
}

export interface AgentParts extends AsyncDisposable {
  readonly link: NodeLink;
  readonly server: PieceServer;
  readonly fetcher: PieceFetcher;
  readonly sealer: Sealer;
  readonly claim: ClaimCache;
  readonly clock: Clock;
  readonly random: () => number;
}

/** Opens the byte server; the coordinator is called only when there is something to ask or say. */
export async function openAgent(settings: AgentSettings, log: Log): Promise<AgentParts> {
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
    clock: systemClock,
    random: Math.random,
    [Symbol.asyncDispose]: async () => {
      await link[Symbol.asyncDispose]();
      await Promise.all([server, fetcher, sealer].map((part) => part[Symbol.asyncDispose]()));
    },
  };
}
