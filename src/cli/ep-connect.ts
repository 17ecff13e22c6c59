// SPDX-License-Identifier: Apache-2.0
// The way of `relight ep` and of an agent's ranks to the coordinator, from the configuration.

import { EpClient } from "../agent/ep-client.ts";
import { EpHost } from "../agent/ep-host.ts";
import { openMembership } from "../agent/membership.ts";
import type { Config } from "../config/schema.ts";
import type { Log } from "../observe/log.ts";
import { systemClock } from "../platform/clock.ts";
import { agentSettings } from "./agent-settings.ts";

/** @throws RelightError `config_invalid`; what joining the fleet gives. */
export async function openEpClient(config: Config, signal: AbortSignal): Promise<EpClient> {
  const { nodeId, membership, trust, coordinator: configured } = agentSettings(config);
  const timeoutMs = config["agent.connect_timeout"];
  const where = { nodeId, coordinator: configured, timeoutMs };
  const clock = systemClock;
  const { source, coordinator } = await openMembership(membership, {
    ...{ ...trust, ...where, clock, signal },
  });
  const tls = source === null ? {} : { tls: () => source.material };
  return new EpClient({ address: coordinator, timeoutMs, ...tls });
}

/** Null when no socket is configured. */
export async function openEpHost(
  config: Config,
  log: Log,
  signal: AbortSignal,
): Promise<Disposable | null> {
  const socketPath = config["agent.ep_socket"];
  if (socketPath === null) return null;
  using opened = new DisposableStack();
  const client = opened.use(await openEpClient(config, signal));
  const onFailure = ({ code, message }: { readonly code: string; readonly message: string }) =>
    log.error("failure", { code, message });
  const { nodeId } = agentSettings(config);
  opened.use(new EpHost({ nodeId, socketPath, client, onFailure }));
  return opened.move();
}
