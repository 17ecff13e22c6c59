// SPDX-License-Identifier: Apache-2.0
// One end of a transfer whose signatures or whose TLS are measured, as its own process: signs, seals and
// serves a folder in plaintext and behind TLS, or asks for it as an agent does, with trust or without.
// Orders and answers are JSON lines.

import readline from "node:readline";
import { openTrust } from "../src/agent/open-trust.ts";
import { insecureTrust, type Subject } from "../src/agent/trust.ts";
import { createStaging, installStaged, missingFiles, openRoot } from "../src/artifacts/install.ts";
import { customFamily } from "../src/artifacts/kinds/custom.ts";
import { listPieces } from "../src/artifacts/manifest.ts";
import { startPull } from "../src/artifacts/pull-run.ts";
import { pullSettings } from "../src/artifacts/pull-state.ts";
import { seal } from "../src/artifacts/seal.ts";
import type { Hex32 } from "../src/core/digest.ts";
import { PieceSet } from "../src/core/pieces.ts";
import { assert } from "../src/errors.ts";
import { silentLog } from "../src/observe/log.ts";
import { systemClock } from "../src/platform/clock.ts";
import { startHttpFetcher } from "../src/transport/http-fetcher.ts";
import { startHttpServer } from "../src/transport/http-server.ts";
import { loadOrCreateAuthority } from "../src/trust/fleet-authority.ts";
import { selfIssued } from "../src/trust/tls-source.ts";

export interface Served {
  readonly plain: string;
  /** With the id to expect there. */
  readonly secure: string;
  readonly artifactId: Hex32;
  readonly signMs: number;
  readonly statementBytes: number;
}

export interface Order {
  readonly endpoint: string;
  readonly artifactId: Hex32;
  readonly root: string;
  readonly isSigned: boolean;
}

export interface Timed {
  /** From the order to the receipt. */
  readonly ms: number;
  /** Of that, until it was known what may be installed. */
  readonly grantMs: number;
}

const subject: Subject = { family: "bench", identity: {}, model: "" };
const [, , role = "", folder = "", root = ""] = process.argv;
const signal = AbortSignal.timeout(600_000);
const uri = `spiffe://bench/author/${role}`;
const authority = loadOrCreateAuthority(folder, { trustDomain: "bench", now: Date.now() });
const tls = selfIssued(authority, { uri, lifetimeMs: 3_600_000, now: Date.now }).material;
const closed = await openTrust(
  { mode: "closed", folder, policyFile: `${folder}/none.json`, environment: "default" },
  { nodeId: role, clock: systemClock, log: silentLog, signal },
);

async function serve(): Promise<void> {
  const at = { host: "127.0.0.1", port: 0, events: { fileChanged: () => {} } };
  await using plain = await startHttpServer(at);
  await using secure = await startHttpServer({ ...at, tls });
  const family = customFamily("bench", root);
  const sealed = seal({ root, family, excluded: [], settledBeforeMs: Date.now() + 1_000 });
  assert(sealed !== null, "the measured tree has files");
  const { manifest } = sealed;
  const began = performance.now();
  const { statement } = closed.author(manifest, subject);
  const signMs = performance.now() - began;
  const pieces = listPieces(manifest);
  const have = new PieceSet(pieces.length);
  have.addAll();
  const files = sealed.files.map(({ entry, mtimeNs, inode }) => ({
    path: `${root}/${entry.path}`,
    size: entry.size,
    stamp: { mtimeNs, inode },
  }));
  const { artifactId, bytes } = manifest;
  for (const server of [plain, secure])
    await server.offer({ artifactId, manifest: bytes, statement, files, pieces, have });
  answer({
    plain: plain.endpoint,
    secure: `${secure.endpoint}#${uri}`,
    artifactId,
    signMs,
    statementBytes: statement.length,
  } satisfies Served);
  for await (const _line of readline.createInterface({ input: process.stdin })) return;
}

async function take(): Promise<void> {
  await using plain = startHttpFetcher();
  await using secure = startHttpFetcher({ tls });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line) as Order;
    const { endpoint, artifactId } = order;
    const fetcher = endpoint.startsWith("https:") ? secure : plain;
    const began = performance.now();
    const trust = order.isSigned ? closed : insecureTrust;
    const at = { endpoint, artifactId };
    const granted = await trust.grant({ fetcher, at, subject }, signal);
    const grantedMs = performance.now();
    const { manifest } = granted;
    const cacheRoot = openRoot(order.root);
    const files = missingFiles(cacheRoot, manifest);
    const staging = createStaging(cacheRoot, files);
    const pieces = listPieces(manifest);
    const have = new PieceSet(pieces.length);
    await startPull({
      fetcher,
      artifactId,
      sources: [{ endpoint, isComplete: true }],
      staging: { root: staging.tree, files: manifest.files, pieces, have },
      wanted: [...pieces.keys()],
      settings: pullSettings,
      clock: systemClock,
      random: Math.random,
      signal,
    }).done;
    const sources = [endpoint];
    const nowMs = Date.now();
    installStaged({
      root: cacheRoot,
      staging,
      manifest,
      files,
      sources,
      trust: granted.trust,
      nowMs,
    });
    answer({ ms: performance.now() - began, grantMs: grantedMs - began } satisfies Timed);
  }
}

function answer(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

if (role === "serve") await serve();
else await take();
