// SPDX-License-Identifier: Apache-2.0
// The documented set-up of a fleet from its first command to a node that was excluded and came back, with
// real processes: root and authority, a token, two nodes, a cache, a revocation, new keys.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import { readPublicKey } from "../../src/trust/keys.ts";
import { relight, relightJson } from "../support/relight.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/temporary-folder.ts";

interface Shown {
  readonly publicKey: string;
  readonly keyId: string;
  readonly memberKeyId: string | null;
  readonly members: readonly { name: string; role: string; keyId: string; isRevoked: boolean }[];
  readonly document: Document;
}
interface Document {
  readonly identities: readonly { readonly name: string; readonly key?: string }[];
  readonly revoked: { readonly keys: readonly string[]; readonly artifacts: readonly string[] };
}

const dirs = (folder: TemporaryFolder, name: string) => [
  `--state-dir=${folder.path(`${name}/state`)}`,
  `--trust-dir=${folder.path(`${name}/trust`)}`,
];

test("a fleet from `trust init` to a node that was excluded within 5 s and came back with new keys", async () => {
  using folder = temporaryFolder();
  const show = async (name: string) =>
    (await relightJson<Shown>(["trust", "show", ...dirs(folder, name)])).value;
  const hand = (file: string) => {
    fs.mkdirSync(folder.path("coordinator/trust"), { recursive: true, mode: 0o700 });
    const to = folder.path(`coordinator/trust/${file}`);
    // Whole or not at all, as a configuration tool writes: the coordinator reads it every second.
    fs.copyFileSync(folder.path(`office/trust/${file}`), `${to}.new`);
    fs.renameSync(`${to}.new`, to);
  };

  const { publicKey } = await show("warmer");
  const init = ["trust", "init", `--author=warmer=${publicKey}`, ...dirs(folder, "office")];
  const made = await relightJson<{ authority: string | null }>(init);
  assert.match(made.value.authority ?? "", /^[0-9a-f]{64}$/, made.output);
  hand("policy.json");
  hand("fleet-authority.pem");
  await using coordinator = relight([
    "coordinator",
    "--listen=127.0.0.1:0",
    "--http-listen=127.0.0.1:0",
    `--store-dir=${folder.path("store")}`,
    ...dirs(folder, "coordinator"),
  ]);
  const [, address = ""] = await coordinator.printed(/gRPC on (\S+) behind TLS/);
  const [, http = ""] = await coordinator.printed(/HTTP on (\S+)/);
  const token = async (...flags: string[]) => {
    const words = ["trust", "token", ...flags, ...dirs(folder, "coordinator")];
    return `--join=${(await relightJson<{ token: string }>(words)).value.token}`;
  };
  const node = (name: string) => [
    `--coordinator-address=${address}`,
    ...dirs(folder, name),
    `--node-id=${name}`,
    "--model=test",
    "--families=none",
    `--cache=jit=${folder.path(`${name}/cache`)}`,
  ];
  const publish = (...flags: string[]) =>
    relight(["artifact", "publish", "--settle=0s", ...flags, ...node("warmer")]);
  const fetch1 = (...flags: string[]) =>
    relightJson<{ caches: { state: string; code: string | null }[] }>([
      "artifact",
      "fetch",
      ...flags,
      ...node("replica"),
    ]);
  const strangers = async () => {
    const page = await (await fetch(`${http}/metrics`)).text();
    return Number(/^relight_coordinator_strangers_total (\d+)/m.exec(page)?.[1] ?? 0);
  };

  const join = await token("--uses=2");
  folder.write("warmer/cache/k/kernel.bin", "compiled by the warmer");
  const kernel = folder.path("replica/cache/k/kernel.bin");
  {
    await using publisher = publish(join);
    await publisher.printed(/published jit/);
    const fetched = await fetch1(join);
    assert.equal(fetched.value.caches[0]?.state, "installed", fetched.output);
    assert.equal(fs.readFileSync(kernel, "utf8"), "compiled by the warmer");

    const { members } = await show("coordinator");
    assert.deepEqual(members.map(({ name, role }) => [name, role]).sort(), [
      ["replica", "author"],
      ["warmer", "author"],
    ]);
    const { memberKeyId } = await show("warmer");
    assert.equal(members.find(({ name }) => name === "warmer")?.keyId, memberKeyId);
    await relightJson(["trust", "revoke", "key", memberKeyId ?? "", ...dirs(folder, "office")]);
    const before = await strangers();
    const handedMs = performance.now();
    hand("policy.json");
    // Its session is cut; it finds out why when it calls again.
    while ((await strangers()) === before) {
      assert.ok(performance.now() - handedMs < 5_000, "the excluded node is still connected");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  const excluded = await relightJson<unknown>([
    "source",
    "list",
    `--coordinator-address=${address}`,
    ...dirs(folder, "warmer"),
  ]);
  assert.match(excluded.output, /certificate_revoked/);
  assert.equal(
    (await show("coordinator")).members.find(({ isRevoked }) => isRevoked)?.name,
    "warmer",
  );

  // It comes back with a new key for its certificate, and a new one to author with in the old one's place.
  for (const file of ["member-key.pem", "member.pem", "author.pem"])
    fs.rmSync(folder.path(`warmer/trust/${file}`));
  const renewed = await show("warmer");
  const { document } = await show("office");
  const old = readPublicKey(publicKey).keyId;
  const rotated: Document = {
    ...document,
    identities: document.identities.map((identity) =>
      identity.name === "warmer" ? { name: "warmer", key: renewed.publicKey } : identity,
    ),
    revoked: { ...document.revoked, keys: [...document.revoked.keys, old].sort() },
  };
  folder.write("rotated.json", JSON.stringify(rotated));
  const signed = await relightJson<{ version: number }>([
    "trust",
    "sign",
    folder.path("rotated.json"),
    ...dirs(folder, "office"),
  ]);
  assert.equal(signed.code, 0, signed.output);
  hand("policy.json");
  fs.copyFileSync(folder.path("office/trust/policy.json"), folder.path("warmer/trust/policy.json"));
  await using publisher = publish(await token("--node=warmer"));
  await publisher.printed(/published jit/);
  // The replica was off and is handed the policy: it takes back what the old key signed.
  fs.copyFileSync(
    folder.path("office/trust/policy.json"),
    folder.path("replica/trust/policy.json"),
  );
  const again = await fetch1();
  assert.equal(again.value.caches[0]?.state, "installed", again.output);
  assert.match(again.output, /"code":"signer_revoked".*"event":"installation_undone"/);
  const contents = await relightJson<{ files: { signers: string[] }[] }>([
    "artifact",
    "contents",
    ...node("replica").filter((flag) => /state-dir|families|cache/.test(flag)),
  ]);
  assert.deepEqual(
    contents.value.files.map(({ signers }) => signers),
    [[renewed.keyId]],
  );
});
