// SPDX-License-Identifier: Apache-2.0
// `relight coordinator`: runs until it is told to stop.

import { readPolicyFile } from "../agent/open-trust.ts";
import type { Config } from "../config/schema.ts";
import { type CoordinatorOptions, type Notice, startCoordinator } from "../coordinator/main.ts";
import type { Log } from "../observe/log.ts";
import { defineCommand } from "./command.ts";
import { coordinatorTls } from "./fleet-settings.ts";

export const command = defineCommand({
  settings: ["coordinator", "trust", "state", "log"],
  shortGroups: ["coordinator"],
  run: async ({ config, output, log, signal }) => {
    const tls = coordinatorTls(config);
    await using coordinator = await startCoordinator({
      ...(tls === undefined ? {} : { tls }),
      grpc: config["coordinator.listen"],
      http: config["coordinator.http_listen"],
      store: storeOf(config),
      limits: {
        heartbeatTimeoutMs: config["coordinator.stale_after"],
        staleRetentionMs: config["coordinator.remove_after"],
        sessionGraceMs: config["coordinator.session_grace"],
      },
      policy: () => readPolicyFile(config["trust.policy"]),
      onNotice: (notice) => logNotice(log, notice),
    });
    const { grpcAddress, httpUrl } = coordinator;
    const store = config["coordinator.store"];
    const isTls = tls !== undefined;
    output.result({ grpc: grpcAddress, http: httpUrl, store, tls: isTls }, () =>
      [
        `gRPC on ${grpcAddress}${isTls ? " behind TLS" : ""}`,
        `HTTP on ${httpUrl ?? "-"}`,
        `store: ${store}`,
      ].join("\n"),
    );
    await untilAborted(signal);
    return 0;
  },
});

function storeOf(config: Config): CoordinatorOptions["store"] {
  return config["coordinator.store"] === "memory"
    ? { kind: "memory" }
    : { kind: "lmdb", directory: config["coordinator.store_dir"] };
}

function logNotice(log: Log, notice: Notice): void {
  if (notice.type === "serving") log.info("store_answers");
  if (notice.type === "advanced") logAdvanced(log, notice.advanced);
  if (
    notice.type !== "not_serving" &&
    notice.type !== "trust_failed" &&
    notice.type !== "ep_failed"
  )
    return;
  const { code, message } = notice.error;
  log.error("failure", { code, message });
}

/** Its failures are those of the store, of which `not_serving` tells once. */
function logAdvanced(
  log: Log,
  { sessionsLost, markedStale, removed }: Extract<Notice, { type: "advanced" }>["advanced"],
): void {
  if (sessionsLost + markedStale + removed > 0)
    log.info("sources_withheld", { sessionsLost, markedStale, removed });
}

function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
