// SPDX-License-Identifier: Apache-2.0
// A replica's byte path as a process of its own, for tests that kill one. Serves a tree, or pulls one
// and serves on what it has while it still receives. Told by arguments, answers in JSON lines.

import fs from "node:fs";
import { decodeManifest } from "../../src/artifacts/manifest.ts";
import type { Hex32 } from "../../src/core/digest.ts";
import { MiB } from "../../src/core/units.ts";
import { startHttpFetcher } from "../../src/transport/http-fetcher.ts";
import { startHttpServer } from "../../src/transport/http-server.ts";
import { pullWith } from "./pull.ts";
import { makeTree, offerOf, relayOf, stagingFor } from "./tree.ts";

export type PeerOrder =
  | { readonly role: "source"; readonly sizes: Readonly<Record<string, number>> }
  | {
      readonly role: "target";
      readonly artifactId: Hex32;
      /** The first has the manifest. */
      readonly endpoints: readonly string[];
      readonly root: string;
    };

export type PeerAnswer =
  | { readonly type: "serving"; readonly endpoint: string; readonly artifactId: Hex32 }
  | { readonly type: "progress"; readonly pieces: number; readonly piecesLeft: number }
  | { readonly type: "done"; readonly bytesBy: Readonly<Record<string, number>> }
  | { readonly type: "failed"; readonly message: string };

const order = JSON.parse(process.argv[2] ?? "") as PeerOrder;
const server = await startHttpServer({
  host: "127.0.0.1",
  port: 0,
  threads: 1,
  events: { fileChanged: () => {} },
});

if (order.role === "source") {
  const tree = makeTree(order.sizes);
  await server.offer(offerOf(tree));
  answer({ type: "serving", endpoint: server.endpoint, artifactId: tree.manifest.artifactId });
} else {
  await receive(order);
}

async function receive({ artifactId, endpoints, root }: PeerOrder & { role: "target" }) {
  const fetcher = startHttpFetcher({ threads: 1 });
  const signal = AbortSignal.timeout(60_000);
  const at = { endpoint: endpoints[0] ?? "", artifactId };
  const bytes = await fetcher.manifest(at, { bytesMax: 16 * MiB }, signal);
  const manifest = decodeManifest(bytes, { artifactId });
  fs.mkdirSync(root, { recursive: true });
  const staging = stagingFor({ manifest }, root);
  await server.offer(relayOf({ manifest }, staging));
  answer({ type: "serving", endpoint: server.endpoint, artifactId });
  const sources = endpoints.map((endpoint) => ({ endpoint, isComplete: false }));
  const pull = pullWith({
    fetcher,
    artifactId,
    sources,
    staging,
    onProgress: ({ pieces, piecesLeft }) => answer({ type: "progress", pieces, piecesLeft }),
  });
  try {
    const report = await pull.done;
    const bytesBy = Object.fromEntries(
      report.sources.map((source) => [source.endpoint, source.bytes]),
    );
    answer({ type: "done", bytesBy });
  } catch (error) {
    answer({ type: "failed", message: String(error) });
  }
}

function answer(value: PeerAnswer): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
