// SPDX-License-Identifier: Apache-2.0
// The coordinator's composition root: names the store, opens the sockets, turns the clock. Used by the
// CLI, `relight dev` and tests. Start is complete when it resolves; stop drains and is idempotent.

import { randomUUID } from "node:crypto";
import { MemoryStore } from "../store/memory.ts";
import type { Store } from "../store/store.ts";
import { bindGrpc, closeGrpc, grpcServer } from "./grpc-server.ts";
import { Registry, type RegistryLimits } from "./registry.ts";
import { RelightService } from "./relight-service.ts";

export interface CoordinatorOptions {
  /** Port 0 takes a free one. */
  readonly grpc: { readonly host: string; readonly port: number };
  readonly store: { readonly kind: "memory" };
  readonly limits?: Partial<RegistryLimits>;
  /** How long one call may take. */
  readonly budgetMs?: number;
}

export interface Coordinator extends AsyncDisposable {
  /** host:port as bound. */
  readonly grpcAddress: string;
  stop(): Promise<void>;
}

const budgetMsDefault = 10_000;
const drainMs = 500;
// With the grace of 4 s a lost session's sources are withheld within 4.25 s.
const tickMs = 250;

export async function startCoordinator(options: CoordinatorOptions): Promise<Coordinator> {
  const store: Store = new MemoryStore();
  const registry = new Registry({
    store,
    clock: steadyClock(),
    newSessionId: randomUUID,
    ...(options.limits === undefined ? {} : { limits: options.limits }),
  });
  const budgetMs = options.budgetMs ?? budgetMsDefault;
  await registry.open(AbortSignal.timeout(60_000));
  const server = grpcServer(
    { relight: new RelightService(registry, { budgetMs }) },
    { budgetMs, observe: () => {} },
  );
  const { host, port } = options.grpc;
  const bound = await bindGrpc(server, `${host}:${port}`);
  const ticking = tick(registry, budgetMs);
  let stopped: Promise<void> | undefined;
  const stop = async (): Promise<void> => {
    await ticking.stop();
    await closeGrpc(server, drainMs);
    await store[Symbol.asyncDispose]();
  };
  return {
    grpcAddress: `${host}:${bound}`,
    stop: () => (stopped ??= stop()),
    [Symbol.asyncDispose]: () => (stopped ??= stop()),
  };
}

/** Unix milliseconds at start, carried on by the monotonic clock. */
function steadyClock(): { now: () => number } {
  const base = Date.now() - performance.now();
  return { now: () => Math.floor(base + performance.now()) };
}

/** Advances the registry, one advance at a time. */
function tick(registry: Registry, budgetMs: number): { stop: () => Promise<void> } {
  let running: Promise<unknown> = Promise.resolve();
  let isBusy = false;
  const timer = setInterval(() => {
    if (isBusy) return;
    isBusy = true;
    running = registry.advance(AbortSignal.timeout(budgetMs)).finally(() => {
      isBusy = false;
    });
  }, tickMs);
  return {
    stop: async () => {
      clearInterval(timer);
      await running;
    },
  };
}
