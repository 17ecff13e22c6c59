// SPDX-License-Identifier: Apache-2.0
// The coordinator's composition root: names the store, opens the sockets, turns the clock. Used by the
// CLI, `relight dev` and tests. Start is complete when it resolves; stop drains and is idempotent.

import { randomUUID } from "node:crypto";
import type { ControllerLimits } from "../elastic/group.ts";
import type { KeeperClock } from "../elastic/keeper.ts";
import { asRelightError, type RelightError } from "../errors.ts";
import { openLmdbStore } from "../store/lmdb.ts";
import { MemoryStore } from "../store/memory.ts";
import type { Store } from "../store/store.ts";
import type { BearerTokens } from "../trust/bearer.ts";
import { tlsIdentity } from "../trust/tls-material.ts";
import { type TlsSource, trustDomainOf } from "../trust/tls-source.ts";
import { type Access, FleetAccess, openAccess } from "./access.ts";
import { storeBudget } from "./budget.ts";
import { EnrolmentService, type EnrolmentSettings } from "./enrolment.ts";
import { Groups } from "./ep-groups.ts";
import { EpHttp } from "./ep-http.ts";
import { EpService } from "./ep-service.ts";
import { bindGrpc, closeGrpc, grpcServer } from "./grpc-server.ts";
import { type Door, type DoorLimits, doorLimits, openDoor } from "./grpc-tls.ts";
import { bindHttp, closeHttp, httpServer } from "./http.ts";
import { createMetrics } from "./metrics.ts";
import { P2pService } from "./p2p-service.ts";
import { PolicyFeed } from "./policy-feed.ts";
import { addHealth, addReflection, type Health } from "./reflection.ts";
import { type Advanced, Registry } from "./registry.ts";
import type { RegistryLimits } from "./registry-limits.ts";
import { RelightService } from "./relight-service.ts";
import { Revocations } from "./revocations.ts";

export interface Address {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
}

/** What the operator's log should say. */
export type Notice =
  | { readonly type: "advanced"; readonly advanced: Advanced }
  | { readonly type: "not_serving"; readonly error: RelightError }
  /** Key material or tokens could not be read again; what was read before stays in force. */
  | { readonly type: "trust_failed"; readonly error: RelightError }
  /** A group's record could not be read or written; it is tried again. */
  | { readonly type: "ep_failed"; readonly error: RelightError }
  | { readonly type: "serving" };

export interface CoordinatorOptions {
  readonly grpc: Address;
  /** Absent: no HTTP face. */
  readonly http?: Address;
  readonly store:
    | { readonly kind: "memory" }
    | { readonly kind: "lmdb"; readonly directory: string }
    /** Opened by the caller; closed by `stop`. */
    | { readonly kind: "open"; readonly store: Store };
  readonly limits?: Partial<RegistryLimits>;
  readonly epLimits?: Partial<ControllerLimits>;
  /** How long one call may take. */
  readonly budgetMs?: number;
  /** Absent: plaintext, on loopback only, and nobody has to prove anything. */
  readonly tls?: CoordinatorTls;
  /** The fleet's policy in its envelope, null when there is none; asked every second, carried to agents. */
  readonly policy?: () => Buffer | null;
  readonly onNotice?: (notice: Notice) => void;
}

export interface CoordinatorTls {
  readonly source: TlsSource;
  /** For callers without a certificate; asked again every few seconds. Absent: there are none. */
  readonly tokens?: () => BearerTokens;
  /** Absent: nobody is enrolled here. */
  readonly enrolment?: EnrolmentSettings;
  readonly limits?: Partial<DoorLimits>;
}

export interface Coordinator extends AsyncDisposable {
  /** host:port as bound. */
  readonly grpcAddress: string;
  /** http://host:port as bound; null without an HTTP face. */
  readonly httpUrl: string | null;
  /** Calls in flight finish; sessions and watches are cut. Everything acknowledged is on disk. */
  stop(): Promise<void>;
}

const budgetMsDefault = 10_000;
const recallMsMax = 300_000;
const drainMs = 500;
/** How soon rotated files are taken up. */
const trustEveryMs = 2_000;
/** A revocation is with every connected agent a second after its file. */
const policyEveryMs = 1_000;
// With the grace of 4 s a lost session's sources are withheld within 4.25 s.
const tickMs = 250;

/**
 * @throws RelightError `port_in_use`, or what opening the store gave: `store_corrupt`, `store_newer`,
 * `lock_timeout`, `disk_denied`.
 */
export async function startCoordinator(options: CoordinatorOptions): Promise<Coordinator> {
  await using opened = new AsyncDisposableStack();
  const budgetMs = options.budgetMs ?? budgetMsDefault;
  const store = opened.use(await openStore(options.store));
  const clock = steadyClock();
  const registry = new Registry({
    store,
    clock,
    newSessionId: randomUUID,
    ...(options.limits === undefined ? {} : { limits: options.limits }),
  });
  using recall = storeBudget(recallMsMax);
  await registry.open(recall.signal);
  const metrics = createMetrics(registry);
  const notice = options.onNotice ?? (() => {});
  const { tls } = options;
  const fleet = tls === undefined ? null : fleetAccess(tls);
  const access: Access = fleet ?? openAccess;
  const policies = new PolicyFeed();
  const onFailure = (error: RelightError): void => notice({ type: "ep_failed", error });
  const onChange = metrics.group;
  const groups = opened.use(
    new Groups({ store, clock: keeperClock(clock), onChange, onFailure, ...epLimits(options) }),
  );
  await groups.open(recall.signal);
  const services = {
    relight: new RelightService(registry, { budgetMs, onBoot: metrics.boot, access, policies }),
    p2p: new P2pService(registry),
    ep: new EpService(groups, access),
    enrolment:
      tls?.enrolment === undefined
        ? null
        : new EnrolmentService(tls.enrolment, (keyId) => fleet?.isRevoked(keyId) === true),
  };
  const idleMsMax = tls === undefined ? null : { ...doorLimits, ...tls.limits }.idleMsMax;
  const observe = metrics.observe;
  const grpc = grpcServer(services, { budgetMs, observe, access, idleMsMax });
  const health = addHealth(grpc);
  addReflection(grpc);
  const door =
    tls === undefined || fleet === null
      ? null
      : await openSecure(grpc, { at: options.grpc, tls, fleet, opened, notice, metrics });
  const grpcPort = door?.port ?? (await bindGrpc(grpc, options.grpc));
  const revoke = (keys: ReadonlySet<string>): void => {
    fleet?.setRevoked(keys);
    door?.endRevoked();
  };
  opened.defer(() => closeGrpc(grpc, drainMs));
  const httpUrl = await openHttp(options.http, opened, {
    budgetMs,
    metrics,
    ep: new EpHttp(groups, access),
    probe: (signal) => registry.probe(signal),
  });
  opened.use(
    repeat(tickMs, async () => {
      using budget = storeBudget(budgetMs);
      const advanced = await registry.advance(budget.signal);
      metrics.advanced(advanced);
      if (isWorthNotice(advanced)) notice({ type: "advanced", advanced });
    }),
  );
  opened.use(watchHealth(registry, health, notice));
  if (options.policy !== undefined)
    opened.use(carryPolicy(options.policy, { policies, notice, revoke }));
  const running = opened.move();
  let stopped: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    health.set(false);
    stopped ??= running.disposeAsync();
    return stopped;
  };
  return {
    grpcAddress: `${bracketed(options.grpc.host)}:${grpcPort}`,
    httpUrl,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

function fleetAccess({ source, tokens }: CoordinatorTls): FleetAccess {
  const { material } = source;
  const trustDomain = trustDomainOf(material);
  const access = new FleetAccess({ identity: tlsIdentity(material), trustDomain, now: Date.now });
  if (tokens !== undefined) access.setTokens(tokens());
  return access;
}

/** What rotates is taken up while it runs. */
async function openSecure(
  grpc: Parameters<typeof closeGrpc>[0],
  secure: {
    readonly at: Address;
    readonly tls: CoordinatorTls;
    readonly fleet: FleetAccess;
    readonly opened: AsyncDisposableStack;
    readonly notice: (notice: Notice) => void;
    readonly metrics: { readonly strangerRefused: () => void };
  },
): Promise<Door> {
  const { at, tls, fleet, opened, notice, metrics } = secure;
  const limits = { ...doorLimits, ...tls.limits };
  const onRefused = metrics.strangerRefused;
  const { material } = tls.source;
  const isRevoked = (keyId: string) => fleet.isRevoked(keyId);
  const door = opened.use(await openDoor(grpc, material, { ...at, limits, onRefused, isRevoked }));
  opened.use(
    repeat(trustEveryMs, async () => {
      using budget = storeBudget(trustEveryMs);
      try {
        if (tls.tokens !== undefined) fleet.setTokens(tls.tokens());
        if (!(await tls.source.refresh(budget.signal))) return;
        fleet.renew(tlsIdentity(tls.source.material));
        door.renew(tls.source.material);
      } catch (thrown) {
        notice({ type: "trust_failed", error: asRelightError(thrown) });
      }
    }),
  );
  return door;
}

async function openStore(wanted: CoordinatorOptions["store"]): Promise<Store> {
  switch (wanted.kind) {
    case "memory":
      return new MemoryStore();
    case "lmdb":
      return openLmdbStore(wanted.directory);
    case "open":
      return wanted.store;
  }
}

async function openHttp(
  at: Address | undefined,
  opened: AsyncDisposableStack,
  face: Parameters<typeof httpServer>[0],
): Promise<string | null> {
  if (at === undefined) return null;
  const server = httpServer(face);
  const port = await bindHttp(server, at);
  opened.defer(() => closeHttp(server));
  return `http://${bracketed(at.host)}:${port}`;
}

function bracketed(host: string): string {
  return host.includes(":") ? `[${host}]` : host;
}

function isWorthNotice({ sessionsLost, markedStale, removed, failure }: Advanced): boolean {
  return sessionsLost + markedStale + removed > 0 || failure !== null;
}

/** Unix milliseconds at start, carried on by the monotonic clock: a step of the wall clock ages nobody. */
function steadyClock(): { now: () => number } {
  const base = Date.now() - performance.now();
  return { now: () => Math.floor(base + performance.now()) };
}

function keeperClock({ now }: { readonly now: () => number }): KeeperClock {
  return {
    now,
    after: (ms, act) => {
      const timer = setTimeout(act, ms);
      return () => clearTimeout(timer);
    },
  };
}

function epLimits({ epLimits: limits }: CoordinatorOptions): {
  limits?: Partial<ControllerLimits>;
} {
  return limits === undefined ? {} : { limits };
}

const probeEveryMs = 1_000;

/** grpc.health.v1 says what the store says. */
function watchHealth(
  registry: Registry,
  health: Health,
  notice: (notice: Notice) => void,
): AsyncDisposable {
  let isServing = true;
  return repeat(probeEveryMs, async () => {
    using budget = storeBudget(probeEveryMs);
    const error = await failureOf(registry.probe(budget.signal));
    if ((error === null) === isServing) return;
    isServing = error === null;
    health.set(isServing);
    notice(error === null ? { type: "serving" } : { type: "not_serving", error });
  });
}

function failureOf(promise: Promise<void>): Promise<RelightError | null> {
  return promise.then(
    () => null,
    (error: unknown) => asRelightError(error),
  );
}

/** A file that cannot be read is told once; what was read before is carried on. */
function carryPolicy(
  read: () => Buffer | null,
  {
    policies,
    notice,
    revoke,
  }: {
    readonly policies: PolicyFeed;
    readonly notice: (notice: Notice) => void;
    readonly revoke: (keys: ReadonlySet<string>) => void;
  },
): AsyncDisposable {
  const revocations = new Revocations();
  let said = "";
  const look = async () => {
    try {
      const envelope = read();
      said = "";
      if (!policies.set(envelope) || envelope === null) return;
      revocations.take(envelope);
      revoke(revocations.keys);
    } catch (thrown) {
      const error = asRelightError(thrown);
      if (error.message !== said) notice({ type: "trust_failed", error });
      said = error.message;
    }
  };
  void look();
  return repeat(policyEveryMs, look);
}

/** Runs `act` every `everyMs`, never twice at once; disposing waits for the one in progress. */
function repeat(everyMs: number, act: () => Promise<void>): AsyncDisposable {
  let running: Promise<void> | undefined;
  const timer = setInterval(() => {
    running ??= act().finally(() => {
      running = undefined;
    });
  }, everyMs);
  return {
    [Symbol.asyncDispose]: async () => {
      clearInterval(timer);
      await running;
    },
  };
}
