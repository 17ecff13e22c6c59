// SPDX-License-Identifier: Apache-2.0
// Attacks by a coordinator: what it lists, how it answers, which policy it carries, and who it pretends to
// be. It never makes an artifact or a policy acceptable; the worst it can do is a cold start.

import fs from "node:fs";
import path from "node:path";
import type { Code } from "../../src/errors.ts";
import { writePublicKey } from "../../src/trust/keys.ts";
import type { PolicyDocument } from "../../src/trust/policy.ts";
import { signPolicy } from "../../src/trust/setup.ts";
import { timeText } from "../../src/trust/time.ts";
import {
  honestFiles,
  honestSource,
  type Keys,
  listedAs,
  makeKeys,
  nowhere,
  policyFor,
} from "./forge.ts";
import { impostorAttacks } from "./impostors.ts";
import type { CoordinatorPlan, HostileSource, ListedSource } from "./plan.ts";
import type { StateAttack } from "./states.ts";
import type { Arena } from "./suite.ts";
import { judge, type Start, type Target } from "./target.ts";

const hour = 3_600_000;

interface Listing {
  readonly name: string;
  /** Null: the honest source that is listed behind must be used. */
  readonly code: Code | null;
  /** What is served, and how it is listed; in the same order. */
  readonly sources: readonly HostileSource[];
  readonly list: (endpoints: readonly string[]) => readonly Partial<ListedSource>[];
}

function listings({ author, mallory }: Keys): readonly Listing[] {
  const served = (name: string, code: Code | null, sources: readonly HostileSource[]): Listing => ({
    name,
    code,
    sources,
    list: (endpoints) => endpoints.map((endpoint) => ({ endpoint })),
  });
  const named = (name: string, code: Code, listed: Partial<ListedSource>): Listing => ({
    name,
    code,
    sources: [honestSource(name, [author])],
    list: ([endpoint = ""]) => [{ endpoint, ...listed }],
  });
  const rogue = (name: string) => ({
    ...honestSource(name, [mallory], {}, honestFiles("mallory")),
    totalBytes: 2 ** 40,
  });
  const first = "coordinator-lists-a-rogue-source-first";
  const only = "coordinator-lists-rogues-only";
  const exchanged = "coordinator-lists-an-artifact-of-another-family";
  return [
    served(first, null, [rogue(first), honestSource(first, [author])]),
    served(only, "signer_unknown", [rogue(only), rogue(only)]),
    served(exchanged, "statement_mismatch", [honestSource("other-family", [author])]),
    named("coordinator-names-an-endpoint-beyond-loopback", "source_unreachable", {
      endpoint: "http://192.0.2.1:9",
    }),
    named("coordinator-names-an-endpoint-with-a-path", "source_protocol", {
      endpoint: `${nowhere}/latest/meta-data`,
    }),
    named("coordinator-names-an-endpoint-with-a-password", "source_protocol", {
      endpoint: "http://user:word@127.0.0.1:1",
    }),
    named("coordinator-names-a-file", "source_protocol", { endpoint: "file:///etc/passwd" }),
    named("coordinator-smuggles-a-request-in-an-id", "no_source", {
      artifactId: `${"a".repeat(64)}/statement HTTP/1.1\r\nHost: a\r\n\r\nDELETE /`,
    }),
    named("coordinator-names-an-id-that-climbs", "no_source", { artifactId: "../../../healthz" }),
    named("coordinator-names-ten-thousand-sources", "source_unreachable", {
      endpoint: nowhere,
      times: 10_000,
    }),
  ];
}

/** All in one start, each in a cache of its own. */
export async function attackByListing(
  arena: Arena,
  note: (name: string, accepted: string | null) => void,
): Promise<void> {
  const keys = makeKeys();
  const attacks = listings(keys);
  const endpoints = [...(await arena.serves(attacks.flatMap(({ sources }) => sources)))];
  const listed = attacks.flatMap(({ name, sources, list }) =>
    list(endpoints.splice(0, sources.length)).map((changes, index) => ({
      ...listedAs(name, sources[index]),
      ...changes,
    })),
  );
  const { address } = await arena.misleads({ listed });
  const target = arena.target("listed", address);
  target.hands(policyFor(keys), [keys.root]);
  const start = await target.start(attacks.map(({ name }) => name));
  for (const { name, code } of attacks)
    note(
      name,
      code === null ? honestWasUsed(name, start, target) : judge({ name, code }, start, target),
    );
}

function honestWasUsed(name: string, start: Start, target: Target): string | null {
  if (start.cacheRecord(name).state !== "installed") return "the honest source was not used";
  const kernel = fs.readFileSync(path.join(target.cache(name), "k/kernel.bin"), "utf8");
  return kernel === `kernel of ${name}` ? null : "the rogue's bytes lie there";
}

export const coordinatorAttacks: readonly StateAttack[] = [
  answering("coordinator-answers-nothing", "silent", "deadline_exceeded"),
  answering("coordinator-answers-for-one-too-few", "one_too_few", "coordinator_refused"),
  answering("coordinator-answers-without-end", "endless", "coordinator_refused"),
  answering("coordinator-answers-with-garbage", "garbage", "coordinator_refused"),
  { name: "coordinator-withholds-newer-policies", play: frozen },
  carrying("coordinator-carries-an-older-policy", /policy_rollback/, true, (keys) =>
    signPolicy(policyFor(keys, { version: 6, ...harmless }), [keys.root]),
  ),
  carrying("coordinator-carries-another-text-of-the-policy", /policy_rollback/, false, (keys) =>
    signPolicy(policyFor(keys, harmless), [keys.root]),
  ),
  carrying("coordinator-makes-a-policy-up", /policy_invalid/, false, (keys) =>
    signPolicy(policyFor({ ...keys, root: keys.mallory }, newer), [keys.mallory]),
  ),
  carrying("coordinator-changes-the-roots", /policy_invalid/, false, (keys) => {
    const roots = { threshold: 1, keys: [writePublicKey(keys.mallory.publicKey)] };
    return signPolicy(policyFor(keys, { ...newer, roots }), [keys.mallory]);
  }),
  carrying("coordinator-carries-a-policy-from-the-future", /policy_invalid/, false, (keys) => {
    const issuedAt = timeText(Date.now() + 24 * hour);
    return signPolicy(policyFor(keys, { ...newer, issuedAt }), [keys.root]);
  }),
  carrying("coordinator-carries-a-statement-for-a-policy", /policy_invalid/, false, (keys) => {
    const { statement } = honestSource("x", [keys.root]);
    return Buffer.from(statement.kind === "bytes" ? statement.base64 : "", "base64");
  }),
  carrying("coordinator-carries-garbage", /envelope_invalid/, false, () => Buffer.from("{]")),
  { name: "coordinator-floods-with-policies", play: flooded },
  ...impostorAttacks,
];

const harmless: Partial<PolicyDocument> = { revoked: { keys: [], artifacts: [] } };
const newer: Partial<PolicyDocument> = { ...harmless, version: 8 };

function answering(name: string, find: CoordinatorPlan["find"], code: Code): StateAttack {
  const play = async (arena: Arena) => {
    const keys = makeKeys();
    const { address } = await arena.misleads({ find });
    const target = arena.target(name, address);
    target.hands(policyFor(keys), [keys.root]);
    const start = await target.start([name], ["--discover-budget=2s"]);
    return judge({ name, code }, start, target) ?? withinMemory(start);
  };
  return { name, play };
}

/** The node's policy has ended; its coordinator says that there is no newer one. */
async function frozen(arena: Arena): Promise<string | null> {
  const [name, keys] = ["coordinator-withholds-newer-policies", makeKeys()];
  const now = Date.now();
  const times = { issuedAt: timeText(now - 2 * hour), expiresAt: timeText(now - hour) };
  const policy = policyFor(keys, times);
  const source = honestSource(name, [keys.author]);
  const [endpoint = ""] = await arena.serves([source]);
  const listed = [{ ...listedAs(name, source), endpoint }];
  const policies = [signPolicy(policy, [keys.root]).toString("base64")];
  const { address } = await arena.misleads({ listed, policies });
  const target = arena.target(name, address);
  target.hands(policy, [keys.root]);
  return judge({ name, code: "policy_expired" }, await target.start([name]), target);
}

/** The node knows a policy that revokes a key; its coordinator carries one that would let the key in. */
function carrying(
  name: string,
  said: RegExp,
  isQuick: boolean,
  policyOf: (keys: Keys) => Buffer,
): StateAttack {
  const play = async (arena: Arena) => {
    const keys = makeKeys();
    const source = honestSource(name, [keys.revoked]);
    const [endpoint = ""] = await arena.serves([source]);
    const { address } = await arena.misleads({
      listed: [{ ...listedAs(name, source), endpoint }],
      policies: [policyOf(keys).toString("base64")],
    });
    const target = arena.target(name, address);
    target.hands(policyFor(keys), [keys.root]);
    const start = await target.start([name], [], said);
    if (!said.test(start.output)) return `nobody said ${said}`;
    return judge({ name, code: "signer_revoked" }, start, target) ?? versionInForce(target, 7);
  };
  return { name, isQuick, play };
}

async function flooded(arena: Arena): Promise<string | null> {
  const [name, keys] = ["coordinator-floods-with-policies", makeKeys()];
  const source = honestSource(name, [keys.revoked]);
  const [endpoint = ""] = await arena.serves([source]);
  const listed = [{ ...listedAs(name, source), endpoint }];
  const { address } = await arena.misleads({ listed, floodBytes: 4_000_000 });
  const target = arena.target(name, address);
  target.hands(policyFor(keys), [keys.root]);
  const start = await target.start([name], [], /envelope_invalid/);
  return (
    judge({ name, code: "signer_revoked" }, start, target) ??
    versionInForce(target, 7) ??
    withinMemory(start)
  );
}

/** 100 MiB is what one answer may have, and it is held twice while it is put together. */
function withinMemory({ peakMiB }: Start): string | null {
  return peakMiB < 768 ? null : `the agent took ${peakMiB} MiB`;
}

function versionInForce(target: Target, wanted: number): string | null {
  const text = fs.readFileSync(path.join(target.folder, "trust/trust.json"), "utf8");
  const envelope = JSON.parse(Buffer.from(JSON.parse(text).policy, "base64").toString("utf8"));
  const { version } = JSON.parse(Buffer.from(envelope.payload, "base64").toString("utf8"));
  return version === wanted ? null : `policy version ${version} is in force`;
}
