// SPDX-License-Identifier: Apache-2.0
// What an agent installs and authors under a policy, over the in-memory transport with real keys.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { temporaryFolder } from "../../test/support/temporary-folder.ts";
import { makeTree, offerOf, type Tree } from "../../test/support/tree.ts";
import {
  alice,
  bob,
  day,
  identityOf,
  mallory,
  now,
  policyDocument,
  root,
  ruleOf,
} from "../../test/support/trust.ts";
import { listPieces } from "../artifacts/manifest.ts";
import type { Receipt } from "../artifacts/receipt.ts";
import type { Clock } from "../platform/clock.ts";
import { MemoryNetwork } from "../transport/memory.ts";
import { TrustKeeper } from "../trust/keeper.ts";
import type { Signer } from "../trust/keys.ts";
import { makePolicy, type PolicyDocument } from "../trust/policy.ts";
import { signPolicy } from "../trust/setup.ts";
import { type ArtifactTrust, ClosedTrust, insecureTrust, type Subject } from "./trust.ts";

const subject: Subject = { family: "test", identity: { torch: "2.9" }, model: "" };
const stop = new AbortController().signal;

interface World extends Disposable {
  clock: { nowMs: number };
  /** A node with this key that follows the root. */
  node(signer: Signer, document?: PolicyDocument): Promise<ClosedTrust & { keeper: TrustKeeper }>;
  readonly tree: Tree;
  /** Offers the tree with a statement, or without. */
  offers(statement?: Buffer): Promise<{ trust: (target: ArtifactTrust) => Promise<unknown> }>;
}

function world(): World {
  const folder = temporaryFolder();
  const tree = makeTree({ "k/a.bin": 100, "k/b.bin": 5_000 });
  const network = new MemoryNetwork();
  const moment = { nowMs: now };
  const clock: Clock = {
    wallMs: () => moment.nowMs,
    monotonicMs: () => moment.nowMs,
    sleep: async () => {},
  };
  let count = 0;
  return {
    clock: moment,
    tree,
    node: async (signer, document = policyDocument()) => {
      const keeper = new TrustKeeper(folder.path(`node-${count++}`), clock);
      await keeper.pin(makePolicy(document).roots, stop);
      await keeper.offer(signPolicy(document, [root]), stop);
      const trust = new ClosedTrust({
        keeper,
        signer,
        environment: "production",
        producer: { node: "test" },
        clock,
        refresh: async () => {},
        offer: async () => {},
      });
      return Object.assign(trust, { keeper });
    },
    offers: async (statement) => {
      const server = network.serve({ events: { fileChanged: () => {} } });
      await server.offer({ ...offerOf(tree), ...(statement ? { statement } : {}) });
      const at = { endpoint: server.endpoint, artifactId: tree.manifest.artifactId };
      return {
        trust: (target) => target.grant({ fetcher: network.fetcher(), at, subject }, stop),
      };
    },
    [Symbol.dispose]: () => {
      tree[Symbol.dispose]();
      folder[Symbol.dispose]();
    },
  };
}

describe("ClosedTrust", () => {
  test("grants what an author of the policy signed, with a receipt that says who", async () => {
    using all = world();
    const author = await all.node(alice);
    const target = await all.node(bob);
    const source = await all.offers(author.author(all.tree.manifest, subject).statement);
    const granted = (await source.trust(target)) as Awaited<ReturnType<ArtifactTrust["grant"]>>;
    assert.deepEqual(granted.manifest.files, all.tree.manifest.files);
    assert.equal(granted.trust?.signers[0]?.keyId, alice.publicKey.keyId);
    assert.equal(listPieces(granted.manifest).length, 2);
  });

  test("refuses what nobody signed, a stranger's key, and another replica's statement", async () => {
    using all = world();
    const target = await all.node(bob);
    const { manifest } = all.tree;
    const strangers = policyDocument({
      identities: [identityOf("mallory", mallory)],
      rules: [ruleOf({ identities: ["mallory"] })],
    });
    const stranger = await all.node(mallory, strangers);
    const author = await all.node(alice);
    const other = { ...subject, identity: { torch: "2.8" } };
    for (const [statement, code] of [
      [undefined, "source_gone"],
      [insecureTrust.author(manifest, subject).statement, "signature_missing"],
      [stranger.author(manifest, subject).statement, "signer_unknown"],
      [author.author(manifest, other).statement, "statement_mismatch"],
      [author.author(manifest, { ...subject, model: "m" }).statement, "statement_mismatch"],
    ] as const)
      await assert.rejects((await all.offers(statement)).trust(target), { code });
  });

  test("fetches nothing while the policy has expired", async () => {
    using all = world();
    const target = await all.node(bob);
    all.clock.nowMs = now + 40 * day;
    const nobody = {
      fetcher: null as never,
      at: { endpoint: "memory://none", artifactId: all.tree.manifest.artifactId },
      subject,
    };
    await assert.rejects(target.grant(nobody, stop), { code: "policy_expired" });
  });

  test("relays what it may not author, byte for byte, and refuses to author itself", async () => {
    using all = world();
    const author = await all.node(alice);
    const mirror = await all.node(mallory);
    const { statement } = author.author(all.tree.manifest, subject);
    assert.throws(() => mirror.author(all.tree.manifest, subject), { code: "signer_unknown" });
    await (await all.offers(statement)).trust(mirror);
    assert.deepEqual(mirror.author(all.tree.manifest, subject).statement, statement);
  });

  test("refuses at a later start what a revoked key signed, what expired, and what nobody vouched for", async () => {
    using all = world();
    const author = await all.node(alice);
    const target = await all.node(bob);
    const source = await all.offers(author.author(all.tree.manifest, subject).statement);
    const { manifest, trust } = await (source.trust(target) as ReturnType<ArtifactTrust["grant"]>);
    const receipt: Receipt = {
      format: "relight.receipt.v1",
      artifactId: manifest.artifactId,
      family: manifest.family,
      installedAtMs: now,
      sources: [],
      trust,
      files: [],
    };
    assert.equal(target.recheck(receipt), null);
    assert.equal(target.recheck({ ...receipt, trust: null })?.code, "signature_missing");
    const moved = { ...receipt, artifactId: "b".repeat(64) };
    assert.equal(target.recheck(moved)?.code, "statement_mismatch");
    const revoked = { keys: [alice.publicKey.keyId], artifacts: [] };
    const next = policyDocument({ version: 2, revoked });
    await target.keeper.offer(signPolicy(next, [root]), stop);
    assert.equal(target.recheck(receipt)?.code, "signer_revoked");
    await assert.rejects(source.trust(target), { code: "signer_revoked" });
  });

  test("signs anew in time: half a lifetime before the end", async () => {
    using all = world();
    const author = await all.node(alice);
    const { renewAtMs } = author.author(all.tree.manifest, subject);
    assert.ok(renewAtMs > now + 10 * day && renewAtMs < now + 20 * day);
  });
});
