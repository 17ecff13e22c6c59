// SPDX-License-Identifier: Apache-2.0
// From the configuration to what the agent takes, for every command that opens one.

import { randomBytes } from "node:crypto";
import os from "node:os";
import type { AgentSettings } from "../agent/main.ts";
import type { TrustSettings } from "../agent/open-trust.ts";
import type { WeightSettings } from "../agent/open-weights.ts";
import type { RunSettings } from "../agent/run.ts";
import { customFamily } from "../artifacts/kinds/custom.ts";
import { formatAddress } from "../config/kinds.ts";
import type { Config } from "../config/schema.ts";
import { tlsFiles } from "./fleet-settings.ts";

export function agentSettings(config: Config): AgentSettings {
  const nodeId = nodeIdOf(config);
  return {
    nodeId,
    workerId: `${nodeId}-${process.pid}-${randomBytes(3).toString("hex")}`,
    coordinator: formatAddress(config["coordinator.address"]),
    listen: config["agent.listen"],
    advertise: config["agent.advertise"],
    readersMax: config["agent.readers_max"],
    threads: config["agent.workers"],
    silenceMsMax: config["agent.silence_max"],
    connectMsMax: config["agent.connect_timeout"],
    trust: trustSettings(config),
    membership: { files: tlsFiles(config), join: config["trust.join"] },
    weights: config["run.weights"] ? weightSettings(config) : null,
  };
}

function weightSettings(config: Config): WeightSettings {
  return {
    socket: config["agent.socket"],
    readersMax: config["weights.readers_max"],
    loadMsMax: config["weights.load_budget"],
    busyMsMax: config["weights.busy_budget"],
    callMsMax: config["agent.connect_timeout"],
    silenceMsMax: config["agent.silence_max"],
    listen: config["weights.listen"],
    advertise: config["weights.advertise"],
    threads: config["agent.workers"],
    bytesPerSecondMax: config["weights.rate_max"] || Number.POSITIVE_INFINITY,
    transport: config["weights.transport"],
    pretendGpu: config["weights.pretend_gpu"],
  };
}

export function trustSettings(config: Config): TrustSettings {
  return {
    mode: config["trust.mode"],
    folder: config["trust.dir"],
    policyFile: config["trust.policy"],
    environment: config["trust.environment"],
  };
}

export function runSettings(config: Config): RunSettings {
  return {
    nodeId: nodeIdOf(config),
    stateFolder: config["state.dir"],
    facts: {
      model: config["run.model"],
      revision: config["run.revision"],
      tp: numberText(config["run.tp"]),
      pp: numberText(config["run.pp"]),
      ep: numberText(config["run.ep"]),
      dtype: config["run.dtype"],
      quantization: config["run.quantization"],
    },
    extraIdentity: Object.fromEntries(
      config["run.identity"].map(({ name, value }) => [name, value]),
    ),
    families: config["run.families"],
    customCaches: config["run.cache"].map(({ name, value }) => customFamily(name, value)),
    healthUrl: config["run.health_url"],
    python: config["run.python"] ?? "",
    isInstalling: config["run.install"],
    isPublishing: config["run.publish"],
    budgetMs: config["run.budget"],
    discoverMsMax: config["run.discover_budget"],
    fetchMsMax: config["run.fetch_budget"],
    healthMsMax: config["run.health_budget"],
    settleMs: config["run.settle"],
    deltaIntervalMs: config["run.delta_interval"],
  };
}

function nodeIdOf(config: Config): string {
  return (
    config["run.node_id"] ??
    (os
      .hostname()
      .replace(/[^A-Za-z0-9._-]/g, "-")
      .slice(0, 100) ||
      "node")
  );
}

function numberText(value: number | null): string {
  return value === null ? "" : String(value);
}
