// SPDX-License-Identifier: Apache-2.0
// `relight dev` and `relight agent` as processes: a node without an engine takes a cache from another and
// offers it on, and the commands that look at a node say what is there.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import { relight, relightJson } from "../support/relight.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

test("relight agent takes what relight dev offers, offers it on, and says goodbye at SIGTERM", async () => {
  using folder = temporaryFolder();
  folder.write("dev/k/kernel.bin", "compiled under relight dev");
  const caches = (name: string) => ["--families=none", `--cache=jit=${folder.path(name)}`];
  const flags = (name: string) => [
    `--state-dir=${folder.path(`${name}-state`)}`,
    `--trust-dir=${folder.path("trust")}`,
    "--model=m",
    ...caches(name),
  ];
  await using dev = relight([
    "dev",
    "--listen=127.0.0.1:0",
    "--http-listen=127.0.0.1:0",
    "--settle=0s",
    ...flags("dev"),
  ]);
  const [, address = ""] = await dev.printed(/coordinator (\S+:\d+), /);
  await dev.printed(/published jit: 1 file/);
  const at = `--coordinator-address=${address}`;

  await using agent = relight(["agent", "--settle=0s", at, ...flags("agent")]);
  await agent.printed(/warm: jit: 1 file/);
  await agent.printed(/published jit: 1 file/);
  const taken = fs.readFileSync(folder.path("agent/k/kernel.bin"), "utf8");
  assert.equal(taken, "compiled under relight dev");
  assert.equal(await sourcesAt(at), 2);

  const looking = [`--state-dir=${folder.path("agent-state")}`, ...caches("agent")];
  const listed = await relightJson<{
    caches: { family: string; files: number; installed: number }[];
  }>(["artifact", "list", ...looking]);
  const [cache] = listed.value.caches;
  assert.deepEqual([cache?.family, cache?.files, cache?.installed], ["jit", 1, 1], listed.output);
  await using shown = relight(["artifact", "show", "jit", ...looking]);
  await shown.printed(/k\/kernel\.bin/);

  agent.child.kill("SIGTERM");
  assert.equal(await agent.exited, 0, agent.output());
  assert.equal(await sourcesAt(at), 1, "whoever said goodbye is not offered");
  dev.child.kill("SIGTERM");
  assert.equal(await dev.exited, 0, dev.output());
});

async function sourcesAt(coordinator: string): Promise<number> {
  const { value } = await relightJson<{ sources: unknown[] }>(["source", "list", coordinator]);
  return value.sources.length;
}
