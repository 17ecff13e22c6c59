// SPDX-License-Identifier: Apache-2.0
// The agent's composition root: with open-weights.ts, which is loaded only where weights are asked for,
// the only file of agent/ that names implementations of the ports.

import type { Sealer } from "../artifacts/sealer.ts";
import { startSealer } from "../artifacts/sealer.ts";
import { isLoopback } from "../core/loopback.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import { type Clock, systemClock } from "../platform/clock.ts";
import { startDeadline } from "../platform/deadline.ts";
import { startHttpFetcher } from "../transport/http-fetcher.ts";
import { startHttpServer } from "../transport/http-server.ts";
import type { PieceFetcher, PieceServer } from "../transport/transport.ts";
import type { TlsMaterial } from "../trust/tls-material.ts";
import { nobody } from "../trust/tls-source.ts";
import { type ClaimCache, claimCache } from "./claimed-cache.ts";
import { connectCoordinator } from "./coordinator-client.ts";
import { type Membership, type MembershipSettings, openMembership } from "./membership.ts";
import { newestOnly } from "./newest-only.ts";
import { NodeLink } from "./node-link.ts";
import { openTrust, type TrustSettings } from "./open-trust.ts";
import type { WeightParts, WeightSettings, WeightSurroundings } from "./open-weights.ts";
import type { ArtifactTrust } from "./trust.ts";
import { joinMsMax, keepMember } from "./upkeep.ts";

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
  readonly membership: MembershipSettings;
  /** Null: no weights are handed over. */
  readonly weights: WeightSettings | null;
}

export interface AgentParts extends AsyncDisposable {
  readonly link: NodeLink;
  readonly server: PieceServer;
  readonly fetcher: PieceFetcher;
  readonly sealer: Sealer;
  readonly claim: ClaimCache;
  readonly trust: ArtifactTrust;
  readonly weights: WeightParts | null;
  readonly clock: Clock;
  readonly random: () => number;
}

/** Setting up trust reads a few small files; another process may hold their lock. */
const trustMsMax = 5_000;
/** Between two looks at policies that the coordinator carries: it may say one as often as it likes. */
const policyPauseMs = 1_000;

/**
 * Opens the byte server; the coordinator is called only to join a fleet, or when there is something to
 * ask or say. An agent that cannot join starts its engine cold.
 * @throws RelightError `config_invalid` where plaintext would leave this machine, or where trust is
 *   switched off and others could reach this agent.
 */
export async function openAgent(settings: AgentSettings, log: Log): Promise<AgentParts> {
  refuseOpenDoors(settings);
  const { membership, failure } = await join(settings, log);
  const { source, coordinator } = membership;
  const trust = await openAgentTrust(settings, log);
  refusePlaintext({ ...settings, coordinator }, { isTls: source !== null || failure !== null });
  const { connectMsMax, silenceMsMax } = settings;
  const shown = source?.isMember ? withRevoked(source.material, trust) : null;
  // Nobody gets in before we have joined: then peers are let in at the address that is known by now.
  const tlsOfServers =
    source === null && failure === null ? null : (shown ?? nobody(systemClock.wallMs()));
  const server = await startHttpServer({
    ...settings.listen,
    tls: tlsOfServers,
    threads: settings.threads,
    limits: { readersMax: settings.readersMax },
    events: {
      fileChanged: (artifactId, fileIndex) => log.info("file_changed", { artifactId, fileIndex }),
    },
  });
  const fetcher = startHttpFetcher({
    threads: settings.threads,
    tls: shown,
    limits: { connectMsMax, silenceMsMax },
  });
  const sealer = startSealer();
  const toShow = () =>
    source?.isMember ? withRevoked(source.material, trust) : raise(failure ?? notJoined());
  const client = connectCoordinator({
    address: coordinator,
    timeoutMs: connectMsMax,
    ...(source === null && failure === null ? {} : { tls: toShow }),
  });
  const closing = new AbortController();
  const weights = await openWeights(settings, { clock: systemClock, log, tls: tlsOfServers });
  const renew = async (material: TlsMaterial): Promise<void> => {
    await server.renew(material);
    fetcher.renew(material);
    weights?.renew(material);
  };
  const revokedKeys = () => trust.revokedKeys;
  const surroundings = { clock: systemClock, random: Math.random, log };
  const upkeep = keepMember({ membership, renew, revokedKeys, ...surroundings }, closing.signal);
  const link = new NodeLink({
    client,
    server,
    nodeId: settings.nodeId,
    workerId: settings.workerId,
    endpoint: settings.advertise ?? server.endpoint,
    callMsMax: connectMsMax,
    clock: systemClock,
    log,
    onPolicy: newestOnly((envelope) => takePolicy(trust, envelope, log), {
      pauseMs: policyPauseMs,
      clock: systemClock,
      signal: closing.signal,
    }),
  });
  return {
    link,
    server,
    fetcher,
    sealer,
    claim: claimCache,
    trust,
    weights,
    clock: systemClock,
    random: Math.random,
    [Symbol.asyncDispose]: async () => {
      closing.abort();
      await upkeep;
      await link[Symbol.asyncDispose]();
      const parts = [server, fetcher, sealer, ...(weights === null ? [] : [weights])];
      await Promise.all(parts.map((part) => part[Symbol.asyncDispose]()));
    },
  };
}

async function openWeights(
  { weights }: AgentSettings,
  surroundings: WeightSurroundings,
): Promise<WeightParts | null> {
  if (weights === null) return null;
  const { openWeightParts } = await import("./open-weights.ts");
  return openWeightParts(weights, surroundings);
}

async function openAgentTrust({ trust, nodeId }: AgentSettings, log: Log): Promise<ArtifactTrust> {
  using deadline = startDeadline("setting up trust", trustMsMax);
  return await openTrust(trust, { nodeId, clock: systemClock, log, signal: deadline.signal });
}

async function takePolicy(trust: ArtifactTrust, envelope: Buffer, log: Log): Promise<void> {
  using deadline = startDeadline("taking a policy", trustMsMax);
  try {
    await trust.offer(envelope, deadline.signal);
  } catch (thrown) {
    // The coordinator is not believed; the policy that this node knows stays in force.
    const { code, message } = asRelightError(thrown);
    log.warn("failure", { code, message });
  }
}

/** Hosts under which this agent is reached, or says it is. */
function doorsOf(settings: AgentSettings): string[] {
  const { listen, weights } = settings;
  const told = advertisedOf(settings).map((url) => new URL(url).hostname);
  return [listen.host, ...(weights === null ? [] : [weights.listen.host]), ...told];
}

function advertisedOf({ advertise, weights }: AgentSettings): string[] {
  return [advertise, weights?.advertise ?? null].filter((url) => url !== null);
}

/** What installs anything from anybody stays on this machine. */
function refuseOpenDoors(settings: AgentSettings): void {
  const { trust } = settings;
  const open = doorsOf(settings).find((host) => !isLoopback(host));
  if (trust.mode !== "insecure" || open === undefined) return;
  throw new RelightError(
    "config_invalid",
    `Cannot listen on "${open}" with --trust=insecure: want an address of loopback`,
  );
}

/** A fleet that cannot be joined now costs a cold start, not the start; it is tried again while we run. */
async function join(
  settings: AgentSettings,
  log: Log,
): Promise<{ readonly membership: Membership; readonly failure: RelightError | null }> {
  using deadline = startDeadline("joining the fleet", joinMsMax);
  const { nodeId, trust, coordinator, connectMsMax: timeoutMs } = settings;
  const { folder, policyFile } = trust;
  const where = { nodeId, folder, policyFile, coordinator, timeoutMs, clock: systemClock };
  let membership: Membership = { source: null, coordinator, join: async () => {} };
  try {
    membership = openMembership(settings.membership, where);
    await membership.join(deadline.signal);
    return { membership, failure: null };
  } catch (thrown) {
    const failure = asRelightError(thrown);
    if (failure.code === "config_invalid") throw failure;
    log.error("failure", { code: failure.code, message: failure.message });
    return { membership, failure };
  }
}

function refusePlaintext(settings: AgentSettings, { isTls }: { readonly isTls: boolean }): void {
  const plain = advertisedOf(settings).find((url) => url.startsWith("http:"));
  if (isTls && plain !== undefined) {
    throw new RelightError(
      "config_invalid",
      `Cannot advertise "${plain}": the agent speaks TLS, want https`,
    );
  }
  if (isTls) return;
  const dialled = new URL(`tcp://${settings.coordinator}`).hostname;
  const open = [...doorsOf(settings), dialled].find((host) => !isLoopback(host));
  if (open === undefined) return;
  throw new RelightError(
    "config_invalid",
    `Cannot speak plaintext with "${open}": want loopback, or trust.join, or trust.certificate, trust.key and trust.authority`,
  );
}

function withRevoked(material: TlsMaterial, { revokedKeys }: ArtifactTrust): TlsMaterial {
  return { ...material, revokedKeys: [...revokedKeys] };
}

function notJoined(): RelightError {
  return new RelightError("unauthenticated", "Cannot prove who we are: not enrolled yet");
}

function raise(error: RelightError): never {
  throw error;
}
