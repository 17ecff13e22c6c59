// SPDX-License-Identifier: Apache-2.0
// A test engine that obeys commands. Run directly it is a process of its own, which a test may kill: it
// takes one JSON command a line and answers each with one line. First argument: EngineArguments as JSON.

import { closeSync } from "node:fs";
import { createInterface } from "node:readline";
import { asRelightError } from "../../src/errors.ts";
import type { GpuDriver, MemoryHandle } from "../../src/gpu/driver.ts";
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

export interface EngineFailure {
  readonly code: string;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

export type EngineAnswer = { readonly value: unknown } | { readonly error: EngineFailure };

/** A test engine that obeys commands, in this process. */
export class ObedientEngine implements AsyncDisposable {
  readonly #driver: GpuDriver;
  readonly #engine: TestEngine;
  readonly #client: HandleClient;
  #isClosed = false;

  private constructor(driver: GpuDriver, engine: TestEngine, client: HandleClient) {
    this.#driver = driver;
    this.#engine = engine;
    this.#client = client;
  }

  static async open(given: EngineArguments): Promise<ObedientEngine> {
    const driver = openDriver(given);
    const tensors = given.tensors ?? oddTensors;
    const engine = await TestEngine.open({ ...given, driver, tensors });
    return new ObedientEngine(driver, engine, HandleClient.connect(given.agent));
  }

  /** What the command gives, or the error's code, message and details. */
  async answer(command: EngineCommand): Promise<EngineAnswer> {
    try {
      return { value: (await this.#obey(command)) ?? null };
    } catch (cause) {
      const { code, message, details } = asRelightError(cause);
      return { error: { code, message, details } };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#client[Symbol.dispose]();
    // What was exported is the exporter's to close.
    for (const handle of this.#engine.handles) {
      if (handle.kind !== "descriptor") continue;
      for (const { descriptor } of handle.pieces) closeSync(descriptor);
    }
    await this.#driver[Symbol.asyncDispose]();
  }

  async #obey(command: EngineCommand): Promise<unknown> {
    const engine = this.#engine;
    switch (command.do) {
      case "fill":
        return await engine.fill(command.salt);
      case "poison":
        return await engine.poison();
      case "publish":
        return await this.#call("publish", {});
      case "load":
        return await this.#call("load", { sources: command.sources, content: command.content });
      case "update": {
        await this.#value("change", { key: command.key });
        await engine.fill(command.salt);
        return await this.#value("changed", { key: command.key });
      }
      case "write":
        return await engine.write(command.tensor, command.salt);
      case "differing":
        return await engine.differing(command.salt);
      case "padding":
        return await engine.paddingByte();
    }
  }

  async #call(op: "publish" | "load", args: object): Promise<unknown> {
    const { layout, deviceUuid, handles } = this.#engine;
    return await this.#value(op, { layout, deviceUuid, ...args }, handles);
  }

  async #value(op: string, args: object, handles: readonly MemoryHandle[] = []): Promise<unknown> {
    const signal = AbortSignal.timeout(120_000);
    return (await this.#client.call({ op, args, handles }, signal)).value;
  }
}

if (import.meta.main) {
  const engine = await ObedientEngine.open(JSON.parse(process.argv[2] ?? "{}") as EngineArguments);
  process.stdout.write("ready\n");
  for await (const line of createInterface({ input: process.stdin })) {
    const answer = await engine.answer(JSON.parse(line) as EngineCommand);
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
  await engine[Symbol.asyncDispose]();
  process.exit(0);
}
