// SPDX-License-Identifier: Apache-2.0
// A checkpoint between two processes of one machine: sealed, published, fetched, verified and installed,
// with real `relight model` processes and a coordinator, in a memory file system so that no disk is
// measured. The reference is `cp` of the same files into a fresh folder, which verifies nothing.
//
// MODEL_FOLDER: where the files go (default /dev/shm). MODEL_SHARDS: of 768 MiB each (default 4).

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { GiB, MiB } from "../src/core/units.ts";
import { writeCheckpoint } from "../test/support/checkpoint.ts";
import type { Emit } from "./main.ts";

const relight = path.resolve(import.meta.dirname, "../src/cli/main.ts");
const grpc = "127.0.0.1:18551";
const shards = Number(process.env["MODEL_SHARDS"] ?? "4");
const rounds = 3;

export async function run(emit: Emit): Promise<void> {
  const base = process.env["MODEL_FOLDER"] ?? "/dev/shm";
  const folder = fs.mkdtempSync(path.join(base, "relight-model-"));
  const children: ChildProcess[] = [];
  const start = (words: readonly string[]) => {
    const child = spawn(process.execPath, [relight, ...words], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    children.push(child);
    return child;
  };
  try {
    const source = path.join(folder, "source");
    writeCheckpoint(source, { shards, bytes: 768 * MiB });
    const bytes = shards * 768 * MiB;
    emit({ name: "model.bytes", value: bytes, unit: "B" });
    const settings = `--state-dir=${folder}/coordinator`;
    const listen = [`--listen=${grpc}`, "--http-listen=127.0.0.1:18552", settings];
    await said(start(["coordinator", "--store=memory", ...listen]), /gRPC on/);
    const words = (verb: string, dir: string, node: string) => [
      ...["model", verb, dir, "--model=bench", `--coordinator-address=${grpc}`, "--json"],
      ...[`--state-dir=${folder}/state-${node}`, `--trust-dir=${folder}/trust`],
    ];
    const publish = () => start([...words("publish", source, "source"), "--settle=0s"]);
    const first = await timed(() => said(publish(), /artifactId/));
    children.at(-1)?.kill("SIGKILL");
    const again = await timed(() => said(publish(), /artifactId/));
    emit({ name: "model.publish.first_ms", value: first, unit: "ms" });
    emit({ name: "model.publish.again_ms", value: again, unit: "ms" });
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const fetched: number[] = [];
    const copied: number[] = [];
    const present: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const target = path.join(folder, `target-${round}`);
      const fetch = () => ended(start(words("fetch", target, `target-${round}`)));
      fetched.push(await timed(fetch));
      present.push(await timed(fetch));
      const copy = path.join(folder, "copy");
      copied.push(await timed(async () => void execFileSync("cp", ["-r", source, copy])));
      for (const gone of [target, copy]) fs.rmSync(gone, { recursive: true, force: true });
    }
    const [ms, copyMs] = [median(fetched), median(copied)];
    emit({ name: "model.fetch.gibs", value: bytes / GiB / (ms / 1_000), unit: "GiB/s" });
    emit({
      name: "model.fetch.vs_cp",
      value: ms,
      unit: "ms",
      baseline: copyMs,
      ratio: copyMs / ms,
    });
    emit({
      name: "model.fetch.spread_ms",
      value: Math.max(...fetched) - Math.min(...fetched),
      unit: "ms",
    });
    emit({ name: "model.fetch.present_ms", value: median(present), unit: "ms" });
  } finally {
    for (const child of children) child.kill("SIGKILL");
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

async function timed(work: () => Promise<void>): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}

/** Process start included, as a user waits for it. */
async function ended(child: ChildProcess): Promise<void> {
  const [code] = await once(child, "exit");
  if (code !== 0) throw new Error(`It ended with ${code}`);
}

async function said(child: ChildProcess, pattern: RegExp): Promise<void> {
  let text = "";
  await new Promise<void>((resolve, reject) => {
    child.once("exit", () => reject(new Error(`Ended before ${pattern}: ${text}`)));
    for (const stream of [child.stdout, child.stderr])
      stream?.on("data", (chunk) => {
        text += chunk;
        if (pattern.test(text)) resolve();
      });
  });
}

function median(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0;
}
