// SPDX-License-Identifier: Apache-2.0
// Attacks that need a history: policies taken back, withheld or foreign, what is revoked after it was
// installed, traps laid on the disk, and a liar beside an honest source. Each says what went wrong.

import fs from "node:fs";
import path from "node:path";
import { ownPaths, readReceipts, writeJournal, writeReceipt } from "../../src/artifacts/receipt.ts";
import { blake3Hex, wholeDigest } from "../../src/core/digest.ts";
import { policyFormat } from "../../src/trust/policy.ts";
import { timeText } from "../../src/trust/time.ts";
import { honestFiles, honestSource, makeKeys, policyFor, sourceOf } from "./forge.ts";
import type { Arena } from "./suite.ts";
import { judge, leftovers, type Start, type Target } from "./target.ts";

export interface StateAttack {
  readonly name: string;
  /** Played in `npm test` as well. */
  readonly isQuick?: boolean;
  /** Null: refused as it must be. */
  play(arena: Arena): Promise<string | null>;
}

const hour = 3_600_000;

export const stateAttacks: readonly StateAttack[] = [
  { name: "policy-frozen", play: frozen },
  {
    name: "policy-rolled-back",
    isQuick: true,
    play: (arena) => replaced(arena, "policy-rolled-back"),
  },
  { name: "policy-by-strangers", play: (arena) => replaced(arena, "policy-by-strangers") },
  { name: "policy-of-two-texts", play: (arena) => replaced(arena, "policy-of-two-texts") },
  { name: "policy-that-is-garbage", play: (arena) => replaced(arena, "policy-that-is-garbage") },
  {
    name: "key-revoked-after-installation",
    isQuick: true,
    play: (arena) => revokedLater(arena, "key"),
  },
  { name: "artifact-revoked-after-installation", play: (arena) => revokedLater(arena, "artifact") },
  { name: "rule-narrowed-after-installation", play: (arena) => revokedLater(arena, "rule") },
  { name: "epoch-older-than-installed", play: olderEpoch },
  { name: "receipt-without-a-signer", play: forgedReceipt },
  { name: "journal-without-a-signer", isQuick: true, play: forgedJournal },
  { name: "link-in-a-folders-place", play: (arena) => trap(arena, "link-in-a-folders-place") },
  { name: "link-in-relights-place", play: (arena) => trap(arena, "link-in-relights-place") },
  { name: "link-in-a-files-place", play: (arena) => trap(arena, "link-in-a-files-place") },
  { name: "folders-renamed-under-us", play: renameRace },
  { name: "rogue-source-first", play: (arena) => rogueFirst(arena, "same") },
  { name: "rogue-artifact-first", isQuick: true, play: (arena) => rogueFirst(arena, "larger") },
  { name: "key-file-that-others-read", play: readableKey },
  {
    name: "ten-million-entries-sent",
    isQuick: true,
    play: (arena) => tenMillion(arena, "ten-million-entries-sent", null),
  },
  {
    name: "ten-million-entries-behind-a-small-length",
    play: (arena) => tenMillion(arena, "ten-million-entries-behind-a-small-length", 1_048_576),
  },
];

async function frozen(arena: Arena): Promise<string | null> {
  const [name, keys] = ["policy-frozen", makeKeys()];
  const target = arena.target(name);
  const now = Date.now();
  const times = { issuedAt: timeText(now - 2 * hour), expiresAt: timeText(now - hour) };
  target.hands(policyFor(keys, times), [keys.root]);
  await arena.lists([honestSource(name, [keys.author])]);
  return judge({ name, code: "policy_expired" }, await target.start([name]), target);
}

/** What the agent says of each; the policy it knew stays in force. */
const replacements: Readonly<Record<string, string>> = {
  "policy-rolled-back": "policy_rollback",
  "policy-of-two-texts": "policy_rollback",
  "policy-by-strangers": "policy_invalid",
  "policy-that-is-garbage": "envelope_invalid",
};

/** The node has seen a policy that revokes a key; then somebody puts another into its place. */
async function replaced(arena: Arena, name: string): Promise<string | null> {
  const keys = makeKeys();
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  await target.start([name]);
  const harmless = { revoked: { keys: [], artifacts: [] } };
  if (name === "policy-rolled-back")
    target.hands(policyFor(keys, { ...harmless, version: 6 }), [keys.root]);
  if (name === "policy-of-two-texts") target.hands(policyFor(keys, harmless), [keys.root]);
  if (name === "policy-by-strangers")
    target.hands(policyFor({ ...keys, root: keys.mallory }, { ...harmless, version: 8 }), [
      keys.mallory,
    ]);
  if (name === "policy-that-is-garbage")
    fs.writeFileSync(
      path.join(target.folder, "trust/policy.json"),
      JSON.stringify({ format: policyFormat }),
    );
  await arena.lists([honestSource(name, [keys.revoked])]);
  const start = await target.start([name]);
  const said = replacements[name] ?? name;
  if (!start.output.includes(said)) return `nobody said ${said}`;
  return judge({ name, code: "signer_revoked" }, start, target);
}

async function revokedLater(
  arena: Arena,
  what: "key" | "artifact" | "rule",
): Promise<string | null> {
  const [name, keys] = [`${what}-revoked-later`, makeKeys()];
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  const source = honestSource(name, [keys.author]);
  await arena.lists([source]);
  const before = await target.start([name]);
  if (before.cacheRecord(name).state !== "installed")
    return "the honest artifact was not installed";
  const policy = policyFor(keys, { version: 8 });
  const { revoked } = policy;
  const artifacts = [source.artifactId] as typeof revoked.artifacts;
  const changes = {
    key: { revoked: { ...revoked, keys: [...revoked.keys, keys.author.publicKey.keyId] } },
    artifact: { revoked: { ...revoked, artifacts } },
    rule: { rules: policy.rules.filter(({ identities }) => !identities.includes("author")) },
  };
  target.hands({ ...policy, ...changes[what] }, [keys.root]);
  const start = await target.start([name], ["--install=false"]);
  const code = { key: "signer_revoked", artifact: "artifact_revoked", rule: "signer_unknown" }[
    what
  ];
  const undone = start.cacheRecord(name).undone.map((each) => each.code);
  if (!undone.some((each) => each === code)) return `taken back with ${undone.join() || "nothing"}`;
  return leftovers(name, start, target);
}

async function olderEpoch(arena: Arena): Promise<string | null> {
  const [name, keys] = ["epoch-older", makeKeys()];
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  await arena.lists([honestSource(name, [keys.author], { epoch: 5 })]);
  const before = await target.start([name]);
  if (before.cacheRecord(name).state !== "installed")
    return "the honest artifact was not installed";
  fs.rmSync(target.cache(name), { recursive: true });
  const old = honestSource(name, [keys.author], { epoch: 4 }, honestFiles("the day before"));
  await arena.lists([{ ...old, totalBytes: 2 ** 40 }]);
  const start = await target.start([name]);
  if (!start.codes(name).has("statement_replayed")) return "the older one was not refused";
  const kernel = path.join(target.cache(name), "k/kernel.bin");
  return fs.readFileSync(kernel, "utf8").includes("before") ? "the older one lies there" : null;
}

/** Far more than sockets and pipes hold on the way, far less than the 1.1 GB that are on offer. */
const sentBytesMax = 64 * 1_024 * 1_024;
const tenMillionPeakMiBMax = 384;

/** Refused while it is sent: nobody reads it to its end, or keeps it. */
async function tenMillion(
  arena: Arena,
  name: string,
  announcedBytes: number | null,
): Promise<string | null> {
  const keys = makeKeys();
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  const statement = { kind: "entries", count: 10_000_000, announcedBytes } as const;
  const printed = await arena.lists([sourceOf(name, honestFiles(name), { statement })]);
  const start = await target.start([name]);
  const sent = printed().map((line) => Number(line.replace("sent ", "")));
  if (sent.length === 0 || sent.some((bytes) => bytes > sentBytesMax))
    return `${sent.join() || "unknown"} bytes were taken`;
  if (start.peakMiB > tenMillionPeakMiBMax) return `the agent took ${start.peakMiB} MiB`;
  return judge({ name, code: "source_protocol" }, start, target);
}

const planted = "k/planted.so";

function forgery(target: Target, name: string, root: string) {
  const bytes = Buffer.from("\x7fELF planted", "latin1");
  const mtimeMs = Math.floor(Date.now() / 1_000) * 1_000 - hour;
  const file = path.join(root, planted);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, bytes);
  fs.utimesSync(file, new Date(mtimeMs), new Date(mtimeMs));
  const digest = wholeDigest(blake3Hex(bytes));
  for (const folder of [
    ownPaths(target.cache(name)).receipts,
    ownPaths(target.cache(name)).staging,
  ])
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  return {
    format: "relight.receipt.v1" as const,
    artifactId: "e".repeat(64),
    family: name,
    installedAtMs: mtimeMs,
    sources: [],
    trust: null,
    files: [{ path: planted, form: "plain" as const, size: bytes.length, digest, mtimeMs }],
  };
}

/** As an installation from before trust, or by an agent with --trust=insecure, leaves one. */
async function forgedReceipt(arena: Arena): Promise<string | null> {
  const [name, keys] = ["receipt-forged", makeKeys()];
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  writeReceipt(target.cache(name), forgery(target, name, target.cache(name)));
  const start = await target.start([name], ["--install=false"]);
  const [undone] = start.cacheRecord(name).undone;
  if (undone?.code !== "signature_missing") return "the receipt was believed";
  return leftovers(name, start, target);
}

async function forgedJournal(arena: Arena): Promise<string | null> {
  const [name, keys] = ["journal-forged", makeKeys()];
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  const stagingName = "0123456789abcdef";
  const tree = path.join(ownPaths(target.cache(name)).staging, stagingName);
  const receipt = forgery(target, name, tree);
  writeJournal(target.cache(name), { stagingName, receipt });
  return leftovers(name, await target.start([name], ["--install=false"]), target);
}

/** Somebody left links where an honest artifact will be installed. */
async function trap(arena: Arena, name: string): Promise<string | null> {
  const keys = makeKeys();
  const target = arena.target(name);
  const outside = path.join(target.folder, "outside");
  const root = target.cache(name);
  fs.mkdirSync(outside, { recursive: true });
  fs.mkdirSync(path.join(root, "k"), { recursive: true });
  fs.writeFileSync(path.join(outside, "victim"), "untouched");
  const link = (at: string, to: string) => {
    fs.rmSync(path.join(root, at), { recursive: true, force: true });
    fs.symlinkSync(to, path.join(root, at));
  };
  if (name === "link-in-a-folders-place") link("k", outside);
  if (name === "link-in-relights-place") link(".relight", outside);
  if (name === "link-in-a-files-place") link("k/kernel.bin", path.join(outside, "victim"));
  target.hands(policyFor(keys), [keys.root]);
  await arena.lists([honestSource(name, [keys.author])]);
  const start = await target.start([name]);
  return judgeOutside(outside, start);
}

function judgeOutside(outside: string, start: Start): string | null {
  const names = fs.readdirSync(outside);
  if (names.join() !== "victim") return `outside lie ${names.join(", ")}`;
  if (fs.readFileSync(path.join(outside, "victim"), "utf8") !== "untouched")
    return "the victim was written";
  return start.record.engineStartedMs === null ? "the engine did not start" : null;
}

/** Folders become links and folders again, as fast as it goes, while an honest artifact arrives. */
async function renameRace(arena: Arena): Promise<string | null> {
  const [name, keys] = ["rename-race", makeKeys()];
  const target = arena.target(name);
  const outside = path.join(target.folder, "outside");
  fs.mkdirSync(outside, { recursive: true });
  fs.writeFileSync(path.join(outside, "victim"), "untouched");
  const folder = path.join(target.cache(name), "k");
  fs.mkdirSync(target.cache(name), { recursive: true });
  target.hands(policyFor(keys), [keys.root]);
  await arena.lists([honestSource(name, [keys.author])]);
  let isOver = false;
  const racer = (async () => {
    while (!isOver) {
      await fs.promises.symlink(outside, folder).catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, 1));
      await fs.promises.unlink(folder).catch(() => {});
    }
  })();
  const start = await target.start([name]);
  isOver = true;
  await racer;
  return judgeOutside(outside, start);
}

/** A liar beside an honest source, preferred by what it claims. */
async function rogueFirst(arena: Arena, kind: "same" | "larger"): Promise<string | null> {
  const [name, keys] = [`rogue-${kind}`, makeKeys()];
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  const honest = honestSource(name, [keys.author]);
  const rogue =
    kind === "same"
      ? { ...honest, totalBytes: 2 ** 40, statement: { kind: "missing" as const } }
      : {
          ...honestSource(name, [keys.mallory], {}, honestFiles("mallory")),
          totalBytes: 2 ** 40,
        };
  await arena.lists([rogue, rogue, rogue, honest]);
  const start = await target.start([name]);
  if (start.cacheRecord(name).state !== "installed") return "the honest source was not used";
  const kernel = path.join(target.cache(name), "k/kernel.bin");
  if (fs.readFileSync(kernel, "utf8") !== `kernel of ${name}`) return "the rogue's bytes lie there";
  const [receipt] = readReceipts(target.cache(name), () => {});
  const signer = receipt?.trust?.signers[0]?.keyId;
  return signer === keys.author.publicKey.keyId ? null : "the receipt names another signer";
}

async function readableKey(arena: Arena): Promise<string | null> {
  const [name, keys] = ["key-readable", makeKeys()];
  const target = arena.target(name);
  target.hands(policyFor(keys), [keys.root]);
  await target.start([name]);
  fs.chmodSync(path.join(target.folder, "trust/author.pem"), 0o644);
  await arena.lists([honestSource(name, [keys.author])]);
  return judge({ name, code: "key_unsafe" }, await target.start([name]), target);
}

/** The attack that must succeed where trust is switched off: else the suite proves nothing. */
export async function canary(arena: Arena): Promise<string | null> {
  const name = "canary";
  const target = arena.target(name);
  await arena.lists([sourceOf(name, honestFiles(name), { statement: { kind: "missing" } })]);
  const start = await target.start([name], ["--trust=insecure"]);
  if (start.cacheRecord(name).state !== "installed") return "the canary was refused";
  return start.record.trust?.mode === "insecure" ? null : "the record does not say insecure";
}
