// SPDX-License-Identifier: Apache-2.0
// A fleet's policy with real processes: made on one machine, handed out as a file, obeyed by every
// command, and revoked.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { describe, test } from "node:test";
import { relight, relightJson, startTestCoordinator } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

interface Shown {
  readonly keyId: string;
  readonly publicKey: string;
  readonly inForce: number | null;
  readonly document: { readonly version: number; readonly identities: readonly object[] };
}

const dirs = (folder: TemporaryFolder, name: string) => [
  `--state-dir=${folder.path(`${name}/state`)}`,
  `--trust-dir=${folder.path(`${name}/trust`)}`,
];

function cacheFlags(folder: TemporaryFolder, name: string, coordinator: string): string[] {
  return [
    `--coordinator-address=${coordinator}`,
    ...dirs(folder, name),
    "--model=test",
    "--families=none",
    `--cache=jit=${folder.path(`${name}/cache`)}`,
  ];
}

/** As a configuration tool or a mounted file would. */
function handOut(folder: TemporaryFolder, from: string, to: string): void {
  fs.mkdirSync(folder.path(`${to}/trust`), { recursive: true });
  fs.copyFileSync(folder.path(`${from}/trust/policy.json`), folder.path(`${to}/trust/policy.json`));
}

describe("relight trust", () => {
  test("a policy from `trust init` lets its authors warm others, until their key is revoked", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const warmer = await relightJson<Shown>(["trust", "show", ...dirs(folder, "warmer")]);
    const made = await relightJson<{ version: number }>([
      "trust",
      "init",
      ...dirs(folder, "office"),
      `--author=warmer=${warmer.value.publicKey}`,
    ]);
    assert.equal(made.code, 0, made.output);
    for (const name of ["warmer", "replica"]) handOut(folder, "office", name);
    const followed = await relightJson<{ ok: boolean }>([
      "trust",
      "policy",
      "check",
      ...dirs(folder, "replica"),
    ]);
    assert.equal(followed.value.ok, true, followed.output);

    folder.write("warmer/cache/k/kernel.bin", "compiled by the warmer");
    await using publisher = relight([
      "artifact",
      "publish",
      "--settle=0s",
      "--delta-interval=200ms",
      ...cacheFlags(folder, "warmer", coordinator.address),
    ]);
    await publisher.printed(/published jit/);
    const target = cacheFlags(folder, "replica", coordinator.address);
    const fetched = await relightJson<{ caches: { state: string; code: string | null }[] }>([
      "artifact",
      "fetch",
      ...target,
    ]);
    assert.equal(fetched.value.caches[0]?.state, "installed", fetched.output);
    const kernel = folder.path("replica/cache/k/kernel.bin");
    assert.equal(fs.readFileSync(kernel, "utf8"), "compiled by the warmer");

    const local = target.filter((flag) => !/coordinator|trust-dir/.test(flag));
    const contents = await relightJson<{ files: { path: string; signers: string[] }[] }>([
      "artifact",
      "contents",
      ...local,
    ]);
    assert.deepEqual(
      contents.value.files.map(({ path: name, signers }) => [name, signers]),
      [["k/kernel.bin", [warmer.value.keyId]]],
    );
    const verify = ["artifact", "verify", ...target.filter((flag) => !/coordinator/.test(flag))];
    assert.equal((await relightJson(verify)).code, 0);

    const revoked = await relightJson<{ version: number }>([
      "trust",
      "revoke",
      "key",
      warmer.value.keyId,
      ...dirs(folder, "office"),
    ]);
    assert.equal(revoked.value.version, made.value.version + 1, revoked.output);
    handOut(folder, "office", "replica");
    const verified = await relightJson<{ installations: { code: string }[] }>(verify);
    assert.equal(verified.value.installations[0]?.code, "signer_revoked");
    await using restarted = relight([
      "run",
      ...target,
      "--install=false",
      "--",
      "test",
      "!",
      "-e",
      kernel,
    ]);
    assert.equal(await restarted.exited, 0, "the engine finds nothing of the revoked key");
    await restarted.drained;
    assert.match(restarted.output(), /taken back: jit: 1 file: signer_revoked/);
    const again = await relightJson<{ caches: { code: string }[] }>([
      "artifact",
      "fetch",
      ...target,
    ]);
    assert.equal(again.value.caches[0]?.code, "signer_revoked");

    handOut(folder, "office", "warmer");
    for (let attempt = 0; ; attempt++) {
      const left = await relightJson<{ sources: unknown[] }>([
        "source",
        "list",
        `--coordinator-address=${coordinator.address}`,
      ]);
      if (left.value.sources.length === 0) break;
      assert.ok(attempt < 10, "the revoked author offers its artifact no more");
    }
  });

  test("a mirror that started again carries what another signed after that one is gone", async () => {
    using folder = temporaryFolder();
    await using coordinator = await startTestCoordinator(folder.path("store"));
    const { value: warmer } = await relightJson<Shown>([
      "trust",
      "show",
      ...dirs(folder, "warmer"),
    ]);
    const author = `--author=warmer=${warmer.publicKey}`;
    await relightJson(["trust", "init", ...dirs(folder, "office"), author]);
    for (const name of ["warmer", "mirror", "replica"]) handOut(folder, "office", name);
    folder.write("warmer/cache/k/kernel.bin", "compiled by the warmer");
    const publish = ["artifact", "publish", "--settle=0s"];
    const fetch = async (name: string) => {
      const words = ["artifact", "fetch", ...cacheFlags(folder, name, coordinator.address)];
      const { value, output } = await relightJson<{ caches: { state: string }[] }>(words);
      return { state: value?.caches[0]?.state, output };
    };
    {
      const flags = cacheFlags(folder, "warmer", coordinator.address);
      await using publisher = relight([...publish, ...flags]);
      await publisher.printed(/published jit/);
      const taken = await fetch("mirror");
      assert.equal(taken.state, "installed", taken.output);
      // Says goodbye: nobody is sent to it any more.
      publisher.child.kill("SIGTERM");
      await publisher.exited;
    }
    await using mirror = relight([
      ...publish,
      ...cacheFlags(folder, "mirror", coordinator.address),
    ]);
    for (const until = Date.now() + 30_000; ; ) {
      const { state, output } = await fetch("replica");
      if (state === "installed") break;
      assert.ok(Date.now() < until, `${output}\n${mirror.output()}`);
      fs.rmSync(folder.path("replica/cache"), { recursive: true, force: true });
    }
    const contents = await relightJson<{ files: { path: string; signers: string[] }[] }>([
      "artifact",
      "contents",
      ...cacheFlags(folder, "replica", "").filter((flag) => !/coordinator|trust-dir/.test(flag)),
    ]);
    assert.deepEqual(
      contents.value.files.map(({ path: name, signers }) => [name, signers]),
      [["k/kernel.bin", [warmer.keyId]]],
    );
  });

  test("a revocation reaches a connected agent within 5 s, through a coordinator that cannot make one up", async () => {
    using folder = temporaryFolder();
    await relightJson(["trust", "init", ...dirs(folder, "office")]);
    handOut(folder, "office", "replica");
    const carried = folder.path("coordinator.json");
    await using coordinator = await startTestCoordinator(folder.path("store"), [
      `--trust-policy=${carried}`,
    ]);
    folder.write("replica/cache/kernel.bin", "compiled");
    await using agent = relight([
      "artifact",
      "publish",
      "--settle=0s",
      ...cacheFlags(folder, "replica", coordinator.address),
    ]);
    await agent.printed(/not allowed|signer_unknown/);
    const inForce = () => {
      const text = fs.readFileSync(folder.path("replica/trust/trust.json"), "utf8");
      const envelope = Buffer.from(JSON.parse(text).policy, "base64").toString();
      return JSON.parse(Buffer.from(JSON.parse(envelope).payload, "base64").toString());
    };
    const before = inForce().version;

    await relightJson(["trust", "init", ...dirs(folder, "stranger")]);
    fs.copyFileSync(folder.path("stranger/trust/policy.json"), carried);
    await agent.printed(/policy_(invalid|rollback)/, 5_000);
    assert.equal(inForce().version, before);

    await relightJson(["trust", "revoke", "digest", "d".repeat(64), ...dirs(folder, "office")]);
    fs.copyFileSync(folder.path("office/trust/policy.json"), carried);
    const writtenMs = performance.now();
    while (inForce().version === before) {
      assert.ok(performance.now() - writtenMs < 5_000, "the revocation has not arrived");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.deepEqual(inForce().revoked.artifacts, ["d".repeat(64)]);
  });

  test("a policy that the roots in force did not sign is refused, and so is an older one", async () => {
    using folder = temporaryFolder();
    for (const name of ["office", "stranger"])
      await relightJson(["trust", "init", ...dirs(folder, name)]);
    handOut(folder, "office", "replica");
    const before = await relightJson<Shown>(["artifact", "verify", ...dirs(folder, "replica")]);
    assert.equal(before.code, 0, before.output);
    const old = fs.readFileSync(folder.path("office/trust/policy.json"));
    await relightJson(["trust", "revoke", "digest", "a".repeat(64), ...dirs(folder, "office")]);
    handOut(folder, "office", "replica");
    await relightJson(["artifact", "verify", ...dirs(folder, "replica")]);
    const check = ["trust", "policy", "check", ...dirs(folder, "replica")];
    folder.write("replica/trust/policy.json", old);
    assert.match((await relightJson(check)).output, /policy_rollback/);
    handOut(folder, "stranger", "replica");
    assert.match((await relightJson(check)).output, /policy_invalid/);
    const shown = await relightJson<Shown>(["trust", "show", ...dirs(folder, "replica")]);
    assert.equal(shown.value.inForce, 3);
  });

  test("insecure is said loudly and does not leave the machine", async () => {
    using folder = temporaryFolder();
    const flags = ["--trust=insecure", "--families=none", ...dirs(folder, "a")];
    await using open = relight(["run", "--agent-listen=0.0.0.0:0", ...flags, "--", "true"]);
    assert.notEqual(await open.exited, 0);
    await open.drained;
    assert.match(open.output(), /Cannot listen on "0\.0\.0\.0" with --trust=insecure/);
    await using loud = relight(["run", "--install=false", ...flags, "--", "true"]);
    assert.equal(await loud.exited, 0);
    await loud.drained;
    assert.match(loud.output(), /trust_insecure/);
    const why = await relightJson<{ sentences: string[] }>([
      "boot",
      "why",
      `--state-dir=${folder.path("a/state")}`,
    ]);
    assert.match(why.value.sentences.join(" "), /Trust was switched off/);
    assert.equal(fs.existsSync(path.join(folder.path("a/trust"), "author.pem")), false);
  });
});
