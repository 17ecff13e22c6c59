// SPDX-License-Identifier: Apache-2.0
// A coordinator on free loopback ports with a client, both closed with the test, and builders for what
// a client sends.

import {
  type CoordinatorClient,
  connectCoordinator,
  type Publication,
} from "../../src/agent/coordinator-client.ts";
import {
  type Coordinator,
  type CoordinatorOptions,
  startCoordinator,
} from "../../src/coordinator/main.ts";

export const loopback = { host: "127.0.0.1", port: 0 } as const;

export interface Fixture extends AsyncDisposable {
  readonly coordinator: Coordinator;
  readonly client: CoordinatorClient;
  /** Another client of the same coordinator, closed with the rest. */
  connect(): CoordinatorClient;
}

export async function coordinatorFixture(
  options: Partial<CoordinatorOptions> = {},
): Promise<Fixture> {
  await using stack = new AsyncDisposableStack();
  const coordinator = stack.use(
    await startCoordinator({ grpc: loopback, store: { kind: "memory" }, ...options }),
  );
  const connect = (): CoordinatorClient =>
    running.use(connectCoordinator({ address: coordinator.grpcAddress, timeoutMs: 5_000 }));
  const running = stack.move();
  return {
    coordinator,
    client: connect(),
    connect,
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

export function publication(fields: Partial<Publication> & { sessionId: string }): Publication {
  return {
    identity: { modelName: "org/model", mxSourceType: 4 },
    workerId: "worker-1",
    artifact: {
      artifactId: "ab".repeat(32),
      family: "triton",
      totalBytes: 5_000_000_000,
      fileCount: 3,
      pieceCount: 4,
      baseArtifactIds: ["cd".repeat(32)],
    },
    endpoints: ["http://127.0.0.1:7001"],
    complete: true,
    status: "ready",
    ...fields,
  };
}
