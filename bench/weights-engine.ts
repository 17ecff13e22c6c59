// SPDX-License-Identifier: Apache-2.0
// An engine of the weights benchmark, in a process of its own: holds a set's tensors on one GPU, and
// publishes or loads them through an agent. Arguments: set, ordinal,
// agent's socket, how memory is dealt out, where a fake GPU keeps it.
// Takes a word a line (publish, load SOCKET) and answers with one line of JSON.

import { randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import { asRelightError } from "../src/errors.ts";
import { at, type Command, type GpuMemory } from "../src/gpu/driver.ts";
import { HandleClient } from "../src/transport/cuda-ipc.ts";
import { openDriver } from "../test/contracts/weights-agent.ts";
import { backend } from "./weights-pair.ts";
import { type Dealing, layoutOf, type SetName } from "./weights-sets.ts";

const [set, ordinal, agent = "", dealing, directory = ""] = process.argv.slice(2);
const wait = { signal: AbortSignal.timeout(300_000), deadlineMs: 60_000 };
const driver = openDriver({ backend, directory });
const device = (await driver.devices())[Number(ordinal)];
const { handle: context } = await driver.openContext(Number(ordinal));
const stream = await driver.openStream(context);
const layout = layoutOf(set as SetName, { arch: device?.arch ?? 0, dealing: dealing as Dealing });
const memory = await Promise.all(
  layout.allocations.map(({ bytes }) => driver.allocate(context, { bytes, sharing: "ipc" })),
);
const handles = await Promise.all(memory.map(({ id }) => driver.exportMemory(id)));
const client = HandleClient.connect(agent);
console.log(JSON.stringify({ allocations: memory.length, tensors: layout.tensors.length }));

for await (const line of createInterface({ input: process.stdin })) {
  const [word, source = ""] = line.split(" ");
  try {
    console.log(JSON.stringify(word === "publish" ? await publish() : await load(source)));
  } catch (cause) {
    const { code, message } = asRelightError(cause);
    console.log(JSON.stringify({ code, message }));
  }
}
await driver[Symbol.asyncDispose]();
process.exit(0);

async function publish(): Promise<unknown> {
  for (const one of memory) await randomise(one);
  const args = { layout, deviceUuid: device?.uuid };
  return (await client.call({ op: "publish", args, handles }, wait.signal)).value;
}

async function load(source: string): Promise<unknown> {
  const poison = memory.map(
    ({ address, bytes }) => ({ do: "fill", to: address, byte: 0xee, bytes }) as const,
  );
  await driver.submit(stream, poison);
  await driver.finish(stream, wait);
  const args = { layout, deviceUuid: device?.uuid, sources: [source], content: null };
  return (await client.call({ op: "load", args, handles }, wait.signal)).value;
}

/** 1 MiB of fresh random bytes, doubled until the allocation is full. */
async function randomise({ address, bytes }: GpuMemory): Promise<void> {
  const first = Math.min(bytes, 2 ** 20);
  const commands: Command[] = [{ do: "upload", to: address, bytes: randomBytes(first) }];
  for (let done = first; done < bytes; done *= 2) {
    const more = Math.min(done, bytes - done);
    commands.push({ do: "copy", to: at(address, done), from: address, bytes: more });
  }
  await driver.submit(stream, commands);
  await driver.finish(stream, wait);
}
