// SPDX-License-Identifier: Apache-2.0
// A test engine in a process of its own, which a test may kill. It takes one JSON command a line and
// answers each with one line. First argument: EngineArguments as JSON.

import { createInterface } from "node:readline";
import { asRelightError } from "../../src/errors.ts";
import { HandleClient } from "../../src/transport/cuda-ipc.ts";
import type { Coordinate } from "../../src/weights/coordinate.ts";
import { openDriver } from "./weights-agent.ts";
import { oddTensors, type TensorSpec, TestEngine } from "./weights-engine.ts";

export interface EngineArguments {
  readonly backend: "cuda" | "fake";
  readonly directory: string;
  readonly agent: string;
  readonly ordinal: number;
  readonly sharing: "ipc" | "descriptor";
  readonly isReversed: boolean;
  readonly allocationCount: number;
  /** `null` for the odd ones. */
  readonly tensors: readonly TensorSpec[] | null;
  readonly coordinate?: Partial<Coordinate>;
}

export type EngineCommand =
  | { readonly do: "fill"; readonly salt: string }
  | { readonly do: "poison" }
  | { readonly do: "publish" }
  | { readonly do: "load"; readonly sources: readonly string[]; readonly content: string | null }
  | { readonly do: "update"; readonly key: string; readonly salt: string }
  | { readonly do: "write"; readonly tensor: string; readonly salt: string }
  | { readonly do: "differing"; readonly salt: string }
  | { readonly do: "padding" };

const given = JSON.parse(process.argv[2] ?? "{}") as EngineArguments;
const driver = openDriver(given);
const engine = await TestEngine.open({ ...given, driver, tensors: given.tensors ?? oddTensors });
const signal = AbortSignal.timeout(120_000);
const client = HandleClient.connect(given.agent);
process.stdout.write("ready\n");

for await (const line of createInterface({ input: process.stdin })) {
  try {
    const value = await obey(JSON.parse(line) as EngineCommand);
    process.stdout.write(`${JSON.stringify({ value: value ?? null })}\n`);
  } catch (cause) {
    const { code, message, details } = asRelightError(cause);
    process.stdout.write(`${JSON.stringify({ error: { code, message, details } })}\n`);
  }
}
client[Symbol.dispose]();
await driver[Symbol.asyncDispose]();
process.exit(0);

async function obey(command: EngineCommand): Promise<unknown> {
  switch (command.do) {
    case "fill":
      return await engine.fill(command.salt);
    case "poison":
      return await engine.poison();
    case "publish":
      return await call("publish", {});
    case "load":
      return await call("load", { sources: command.sources, content: command.content });
    case "update": {
      await client.call({ op: "change", args: { key: command.key }, handles: [] }, signal);
      await engine.fill(command.salt);
      return await value("changed", { key: command.key });
    }
    case "write":
      return await engine.write(command.tensor, command.salt);
    case "differing":
      return await engine.differing(command.salt);
    case "padding":
      return await engine.paddingByte();
  }
}

async function call(op: "publish" | "load", args: object): Promise<unknown> {
  const { layout, deviceUuid, handles } = engine;
  const reply = await client.call({ op, args: { layout, deviceUuid, ...args }, handles }, signal);
  return reply.value;
}

async function value(op: string, args: object): Promise<unknown> {
  return (await client.call({ op, args, handles: [] }, signal)).value;
}
