// SPDX-License-Identifier: Apache-2.0
// One end of a measured transfer, as its own process: seals and serves a folder, or pulls and installs
// one, with the very code that the agent runs. Orders come as JSON lines, and so do answers.

import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import readline from "node:readline";
import {
  createStaging,
  finishingOf,
  installStaged,
  missingFiles,
  openRoot,
} from "../src/artifacts/install.ts";
import { customFamily } from "../src/artifacts/kinds/custom.ts";
import { decodeManifest, listPieces, manifestLimits } from "../src/artifacts/manifest.ts";
import { startPull } from "../src/artifacts/pull-run.ts";
import { pullSettings } from "../src/artifacts/pull-state.ts";
import { seal } from "../src/artifacts/seal.ts";
import type { Hex32 } from "../src/core/digest.ts";
import { PieceSet } from "../src/core/pieces.ts";
import { assert } from "../src/errors.ts";
import { systemClock } from "../src/platform/clock.ts";
import { startHttpFetcher } from "../src/transport/http-fetcher.ts";
import { startHttpServer } from "../src/transport/http-server.ts";
import type { PieceFetcher } from "../src/transport/transport.ts";

export interface Offered {
  readonly endpoint: string;
  readonly artifactId: Hex32;
  readonly files: number;
  readonly bytes: number;
  readonly manifestBytes: number;
}

export interface PullOrder {
  readonly endpoints: readonly string[];
  readonly artifactId: Hex32;
  readonly root: string;
}

export interface Pulled {
  /** From the order to the receipt: manifest, transfer, verification, installation. */
  readonly ms: number;
  readonly manifestMs: number;
  readonly pullMs: number;
  readonly installMs: number;
  /** Of all threads of the target. */
  readonly cpuMs: number;
  readonly bytes: number;
  readonly files: number;
}

const [, , role, root = ""] = process.argv;

async function source(): Promise<void> {
  await using server = await startHttpServer({
    host: "127.0.0.1",
    port: 0,
    events: { fileChanged: () => {} },
  });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (line === "seal") answer(await offer());
    else {
      const { bytesSent } = server.stats();
      answer({ bytesSent, peakBytes: peakBytes(), cpuMs: cpuMs() });
    }
  }

  async function offer(): Promise<Offered> {
    const family = customFamily("bench", root);
    const sealed = seal({ root, family, excluded: [], settledBeforeMs: Date.now() + 1_000 });
    assert(sealed !== null, "the measured tree has files");
    const { manifest } = sealed;
    const pieces = listPieces(manifest);
    const have = new PieceSet(pieces.length);
    have.addAll();
    const files = sealed.files.map((file) => ({
      path: `${root}/${file.entry.path}`,
      size: file.entry.size,
      stamp: { mtimeNs: file.mtimeNs, inode: file.inode },
    }));
    const { artifactId } = manifest;
    await server.offer({ artifactId, manifest: manifest.bytes, files, pieces, have });
    return {
      endpoint: server.endpoint,
      artifactId,
      files: files.length,
      bytes: files.reduce((sum, file) => sum + file.size, 0),
      manifestBytes: manifest.bytes.length,
    };
  }
}

async function target(): Promise<void> {
  await using fetcher = startHttpFetcher();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (line === "stats") answer({ peakBytes: peakBytes() });
    else if (line === "ready") answer(await settle(fetcher));
    else answer(await pull(JSON.parse(line) as PullOrder));
  }

  async function pull(order: PullOrder): Promise<Pulled> {
    const { endpoints, artifactId } = order;
    const [first = ""] = endpoints;
    const signal = AbortSignal.timeout(120_000);
    const began = performance.now();
    const cpuBefore = cpuMs();
    const { bytesMax } = manifestLimits;
    const bytes = await fetcher.manifest({ endpoint: first, artifactId }, { bytesMax }, signal);
    const manifest = decodeManifest(bytes, { artifactId });
    const cacheRoot = openRoot(order.root);
    const files = missingFiles(cacheRoot, manifest);
    const staging = createStaging(cacheRoot, files);
    const finishing = finishingOf(manifest, Date.now());
    const pieces = listPieces(manifest);
    const missing = new Set(files);
    const wanted = pieces.flatMap((piece, index) => {
      const file = manifest.files[piece.fileIndex];
      return file !== undefined && missing.has(file) ? [index] : [];
    });
    const planned = performance.now();
    const report = await startPull({
      fetcher,
      artifactId,
      sources: endpoints.map((endpoint) => ({ endpoint, isComplete: true })),
      staging: {
        root: staging.tree,
        files: manifest.files,
        pieces,
        have: new PieceSet(pieces.length),
        finishing,
      },
      wanted,
      settings: pullSettings,
      clock: systemClock,
      random: Math.random,
      signal,
    }).done;
    const pulled = performance.now();
    installStaged({
      root: cacheRoot,
      staging,
      manifest,
      files,
      sources: endpoints,
      finishing,
      nowMs: Date.now(),
    });
    const installed = performance.now();
    return {
      ms: installed - began,
      manifestMs: planned - began,
      pullMs: pulled - planned,
      installMs: installed - pulled,
      cpuMs: cpuMs() - cpuBefore,
      bytes: report.bytes,
      files: files.length,
    };
  }
}

/** The first request to nobody starts each thread; afterwards they wait as an agent's do. */
async function settle(fetcher: PieceFetcher): Promise<null> {
  const at = { endpoint: "http://127.0.0.1:1", artifactId: "0".repeat(64) as Hex32 };
  const signal = AbortSignal.timeout(10_000);
  await Promise.allSettled([fetcher.have(at, 1, signal), fetcher.have(at, 1, signal)]);
  return null;
}

/** Passes bytes on to the peer at `endpoint`, so many a second. */
async function link(endpoint: string, bytesPerSecond: number): Promise<void> {
  const server = net.createServer((near) => {
    const far = net.connect(Number(new URL(endpoint).port), "127.0.0.1");
    near.on("error", () => far.destroy());
    far.on("error", () => near.destroy());
    near.pipe(far);
    let freeMs = performance.now();
    far.on("data", (bytes) => {
      near.write(bytes);
      freeMs = Math.max(performance.now(), freeMs) + (1_000 * bytes.length) / linkShare();
      const waitMs = freeMs - performance.now();
      if (waitMs < 5) return;
      far.pause();
      setTimeout(() => far.resume(), waitMs);
    });
  });
  // Lanes share the link, as connections share a network card.
  const linkShare = () => bytesPerSecond / Math.max(1, connections);
  let connections = 0;
  server.on("connection", (near) => {
    connections++;
    near.on("close", () => connections--);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert(address !== null && typeof address === "object", "a listening server has an address");
  for await (const _line of readline.createInterface({ input: process.stdin })) {
    answer({ endpoint: `http://127.0.0.1:${address.port}` });
  }
}

/** The most memory that this process has had resident. */
function peakBytes(): number {
  const status = fs.readFileSync("/proc/self/status", "utf8");
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? 0) * 1_024;
}

/** Processor time of all threads so far. */
function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1_000;
}

function answer(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

if (role === "source") await source();
else if (role === "target") await target();
else if (role === "link") await link(root, Number(process.argv[4]));
