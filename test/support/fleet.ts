// SPDX-License-Identifier: Apache-2.0
// A coordinator behind TLS with the members of one fleet as its clients, all closed with the test.

import { type CoordinatorClient, connectCoordinator } from "../../src/agent/coordinator-client.ts";
import {
  type Coordinator,
  type CoordinatorTls,
  startCoordinator,
} from "../../src/coordinator/main.ts";
import { coordinatorUri, type TlsMaterial } from "../../src/trust/tls-material.ts";
import type { TlsSource } from "../../src/trust/tls-source.ts";
import { loopback } from "./coordinator.ts";
import { liveFleet } from "./trust.ts";

export interface FleetFixture extends AsyncDisposable {
  readonly fleet: ReturnType<typeof liveFleet>;
  readonly coordinator: Coordinator;
  connect(material: TlsMaterial | (() => TlsMaterial)): CoordinatorClient;
}

/** @param policy as in CoordinatorOptions */
export async function fleetFixture(
  tls: Partial<CoordinatorTls> = {},
  policy?: () => Buffer | null,
): Promise<FleetFixture> {
  await using stack = new AsyncDisposableStack();
  const fleet = liveFleet();
  const source = tls.source ?? fixed(fleet.member(coordinatorUri("fleet")));
  const store = { kind: "memory" } as const;
  const carried = policy === undefined ? {} : { policy };
  const coordinator = stack.use(
    await startCoordinator({ grpc: loopback, store, tls: { ...tls, source }, ...carried }),
  );
  const running = stack.move();
  return {
    fleet,
    coordinator,
    connect: (material) =>
      running.use(
        connectCoordinator({
          address: coordinator.grpcAddress,
          timeoutMs: 5_000,
          tls: typeof material === "function" ? material : () => material,
        }),
      ),
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

export function fixed(material: TlsMaterial): TlsSource {
  return { material, refresh: async () => false };
}
