// SPDX-License-Identifier: Apache-2.0
// A fleet behind TLS with real processes: a token is all that a new node is given, and a copied,
// used or forged one is worth nothing.

import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import fs from "node:fs";
import { describe, test } from "node:test";
import { freePort, type RelightProcess, relight, relightJson } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

const dirs = (folder: TemporaryFolder, name: string) => [
  `--state-dir=${folder.path(`${name}/state`)}`,
  `--trust-dir=${folder.path(`${name}/trust`)}`,
];

async function tokenOf(folder: TemporaryFolder, ...flags: string[]): Promise<string> {
  const made = await relightJson<{ token: string }>([
    "trust",
    "token",
    ...dirs(folder, "office"),
    ...flags,
  ]);
  assert.equal(made.code, 0, made.output);
  return made.value.token;
}

async function startCoordinator(
  folder: TemporaryFolder,
  listen = "127.0.0.1:0",
): Promise<RelightProcess & { address: string }> {
  const coordinator = relight([
    "coordinator",
    `--listen=${listen}`,
    "--http-listen=127.0.0.1:0",
    `--store-dir=${folder.path("store")}`,
    ...dirs(folder, "office"),
  ]);
  const [, address = ""] = await coordinator.printed(/gRPC on (\S+) behind TLS/);
  return { ...coordinator, address };
}

function nodeFlags(folder: TemporaryFolder, name: string, coordinator: string): string[] {
  return [
    `--coordinator-address=${coordinator}`,
    ...dirs(folder, name),
    `--node-id=${name}`,
    "--model=test",
    "--families=none",
    `--cache=jit=${folder.path(`${name}/cache`)}`,
  ];
}

interface Fetched {
  readonly caches: { readonly state: string; readonly code: string | null }[];
}

describe("relight run --join", () => {
  test("a token is enough: certificate, policy and a neighbour's caches over mutual TLS", async () => {
    using folder = temporaryFolder();
    const warmer = await relightJson<{ publicKey: string }>([
      "trust",
      "show",
      ...dirs(folder, "warmer"),
    ]);
    const author = `--author=warmer=${warmer.value.publicKey}`;
    await relightJson(["trust", "init", ...dirs(folder, "office"), author]);
    const token = await tokenOf(folder, "--uses=2");
    await using coordinator = await startCoordinator(folder);

    folder.write("warmer/cache/k/kernel.bin", "compiled by the warmer");
    // Beyond loopback: where plaintext would be refused.
    await using publisher = relight([
      "artifact",
      "publish",
      "--settle=0s",
      "--agent-listen=0.0.0.0:0",
      `--join=${token}`,
      ...nodeFlags(folder, "warmer", coordinator.address),
    ]);
    await publisher.printed(/published jit/);
    const target = nodeFlags(folder, "replica", coordinator.address);
    const fetch = ["artifact", "fetch", ...target, `--join=${token}`];
    const fetched = await relightJson<Fetched>(fetch);
    assert.equal(fetched.value.caches[0]?.state, "installed", fetched.output);
    const kernel = folder.path("replica/cache/k/kernel.bin");
    assert.equal(fs.readFileSync(kernel, "utf8"), "compiled by the warmer");

    // The token's two uses are gone. Who has joined needs no token; a third node gets nothing.
    const again = await relightJson<Fetched>(["artifact", "fetch", ...target]);
    assert.equal(again.value.caches[0]?.state, "present", again.output);
    const third = ["artifact", "fetch", ...nodeFlags(folder, "third", coordinator.address)];
    const late = await relightJson<Fetched>([...third, `--join=${token}`]);
    assert.notEqual(late.value.caches[0]?.state, "installed", late.output);
    assert.match(late.output, /it was used 2 of 2 times/);
    assert.equal(fs.existsSync(folder.path("third/trust/member.pem")), false);

    // Uses outlive the coordinator.
    await coordinator[Symbol.asyncDispose]();
    await using restarted = await startCoordinator(folder, coordinator.address);
    const still = await relightJson<Fetched>([...third, `--join=${token}`]);
    assert.match(still.output, /it was used 2 of 2 times/);
    assert.ok(restarted.child.exitCode === null);
  });

  test("a node that cannot join starts its engine all the same, cold", async () => {
    using folder = temporaryFolder();
    using elsewhere = temporaryFolder();
    const foreign = await tokenOf(elsewhere);
    await tokenOf(folder);
    await using coordinator = await startCoordinator(folder);
    const flags = nodeFlags(folder, "replica", coordinator.address);
    // A token of another fleet: this coordinator does not show the authority that it names.
    await using run = relight([
      "run",
      ...flags,
      `--join=${foreign}`,
      "--",
      "echo",
      "engine started",
    ]);
    assert.equal(await run.exited, 0, run.output());
    await run.drained;
    assert.match(run.output(), /engine started/);
    assert.match(run.output(), /certificate_invalid/);
  });

  test("a node that could not join at its start joins when the coordinator is there, and publishes", async () => {
    using folder = temporaryFolder();
    const token = await tokenOf(folder);
    const address = `127.0.0.1:${await freePort()}`;
    folder.write("replica/cache/k/kernel.bin", "x");
    await using publisher = relight([
      "artifact",
      "publish",
      "--settle=0s",
      `--join=${token}`,
      ...nodeFlags(folder, "replica", address),
    ]);
    await publisher.printed(/coordinator_unreachable/);
    await using coordinator = await startCoordinator(folder, address);
    await publisher.printed(/fleet_joined/);
    const listed = [
      "source",
      "list",
      `--coordinator-address=${address}`,
      ...dirs(folder, "replica"),
    ];
    for (const until = Date.now() + 30_000; ; ) {
      const { value, output } = await relightJson<{ sources: unknown[] }>(listed);
      if (value?.sources.length === 1) break;
      assert.ok(Date.now() < until, `it is offered: ${output}\n${publisher.output()}`);
    }
    assert.ok(coordinator.child.exitCode === null);
  });

  test("a token that was changed, has ended or was made up enrols nobody", async () => {
    using folder = temporaryFolder();
    const token = await tokenOf(folder);
    await using coordinator = await startCoordinator(folder);
    const flags = nodeFlags(folder, "replica", coordinator.address);
    const [head = "", body = "", tail = ""] = token.split("~");
    const said = JSON.parse(Buffer.from(body, "base64url").toString("utf8")) as object;
    const changed = (change: object) =>
      [head, Buffer.from(JSON.stringify({ ...said, ...change })).toString("base64url"), tail].join(
        "~",
      );
    const forged = [changed({ role: "operator" }), changed({ uses: 1_000 })];
    for (const join of forged) {
      const asked = await relightJson<Fetched>(["artifact", "fetch", ...flags, `--join=${join}`]);
      assert.match(asked.output, /token_invalid/, asked.output);
      assert.equal(fs.existsSync(folder.path("replica/trust/member.pem")), false);
    }
    // The genuine one was not used up by them.
    const asked = await relightJson<Fetched>(["artifact", "fetch", ...flags, `--join=${token}`]);
    assert.equal(fs.existsSync(folder.path("replica/trust/member.pem")), true, asked.output);
  });

  test("nobody becomes the coordinator by enrolling under its name", async () => {
    using folder = temporaryFolder();
    const token = await tokenOf(folder, "--role=operator");
    await using coordinator = await startCoordinator(folder);
    const flags = nodeFlags(folder, "coordinator", coordinator.address);
    const asked = await relightJson<Fetched>(["artifact", "fetch", ...flags, `--join=${token}`]);
    assert.match(asked.output, /the name is taken/);
    assert.equal(fs.existsSync(folder.path("coordinator/trust/member.pem")), false);
  });

  test("a certificate is renewed by itself before it ends", async () => {
    using folder = temporaryFolder();
    // Its first two thirds lie in the past already: notBefore is set back for late clocks.
    const token = await tokenOf(folder, "--certificate-lifetime=1min");
    await using coordinator = await startCoordinator(folder);
    folder.write("replica/cache/k/kernel.bin", "x");
    await using publisher = relight([
      "artifact",
      "publish",
      "--settle=0s",
      `--join=${token}`,
      ...nodeFlags(folder, "replica", coordinator.address),
    ]);
    await publisher.printed(/published jit/);
    // The token's certificate counts for a minute, a renewed one for a day.
    const member = folder.path("replica/trust/member.pem");
    const inAnHour = Date.now() + 3_600_000;
    const endsAt = () => Date.parse(new X509Certificate(fs.readFileSync(member)).validTo);
    for (const until = Date.now() + 60_000; endsAt() < inAnHour; ) {
      assert.ok(Date.now() < until, `the certificate is renewed: ${publisher.output()}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });
});

test("plaintext beyond loopback is refused, naming what to set", async () => {
  using folder = temporaryFolder();
  const remote = nodeFlags(folder, "replica", "coordinator.example:8001");
  const local = nodeFlags(folder, "replica", "127.0.0.1:1");
  for (const flags of [remote, [...local, "--agent-listen=0.0.0.0:0"]]) {
    const refused = await relightJson<unknown>(["artifact", "fetch", ...flags]);
    assert.equal(refused.code, 2, refused.output);
    assert.match(refused.output, /plaintext.*trust\.join, or trust\.certificate/);
  }
});
