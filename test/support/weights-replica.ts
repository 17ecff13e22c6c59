// SPDX-License-Identifier: Apache-2.0
// A replica under `relight run --weights` on the fake GPU, with a served Python engine, as processes of
// their own that a test may kill.

import path from "node:path";
import type { BootRecord } from "../../src/agent/ledger.ts";
import { freePort, type RelightProcess, relight, relightJson } from "./relight.ts";
import type { TemporaryFolder } from "./temporary-folder.ts";

const python = path.resolve(import.meta.dirname, "../../python");

export interface WeightsReplica extends RelightProcess {
  readonly port: number;
  readonly state: string;
}

/** What the engine says of itself. */
export interface EngineWeights {
  readonly warm: boolean;
  readonly code: string;
  readonly message: string;
  readonly sources?: readonly string[];
  readonly unpublished?: string;
  /** Whether each region holds the values that were asked about. */
  readonly holds: readonly boolean[];
}

export interface ReplicaOptions {
  readonly coordinator: string;
  /** Of the values that this engine "has on disk". */
  readonly salt?: string;
  readonly flags?: readonly string[];
  /** Words in front of port, directory and salt; the engine that serves tensors when not given. */
  readonly engine?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  /** Of a fleet, with a key of its own; otherwise replicas share one. */
  readonly isMember?: boolean;
  /** Whether its own agent hands over weights; else the one of RELIGHT_AGENT_SOCKET. */
  readonly isHandingOver?: boolean;
}

export async function startWeightsReplica(
  folder: TemporaryFolder,
  name: string,
  {
    coordinator,
    salt = "one",
    flags = [],
    engine = ["serving_engine.py"],
    environment = {},
    isMember = false,
    isHandingOver = true,
  }: ReplicaOptions,
): Promise<WeightsReplica> {
  const port = await freePort();
  const state = folder.path(`${name}/state`);
  const gpu = folder.path("gpu");
  const [script = "", ...words] = engine;
  const process = relight(
    [
      "run",
      ...(isHandingOver ? ["--weights", `--weights-pretend-gpu=${gpu}`] : []),
      `--coordinator-address=${coordinator}`,
      `--node-id=${name}`,
      `--state-dir=${state}`,
      `--trust-dir=${folder.path(isMember ? `${name}/trust` : "trust")}`,
      "--model=m",
      "--families=none",
      `--cache=jit=${folder.path(`${name}/cache`)}`,
      `--health-url=http://127.0.0.1:${port}/health`,
      ...flags,
      "--",
      "python3",
      path.join(python, "tests", script),
      ...words,
      String(port),
      gpu,
      salt,
    ],
    { PYTHONPATH: python, PYTHONDONTWRITEBYTECODE: "1", ...environment },
  );
  return { ...process, port, state };
}

/** @param salt whose values are meant by `holds`; the replica's own when absent */
export async function engineWeights(replica: WeightsReplica, salt = ""): Promise<EngineWeights> {
  return await askEngine(replica, `weights${salt === "" ? "" : `?${salt}`}`);
}

export async function askEngine(replica: WeightsReplica, word: string): Promise<EngineWeights> {
  const response = await fetch(`http://127.0.0.1:${replica.port}/${word}`);
  return (await response.json()) as EngineWeights;
}

export async function bootOf(replica: WeightsReplica): Promise<BootRecord> {
  return (await relightJson<BootRecord>(["boot", "show", `--state-dir=${replica.state}`])).value;
}
