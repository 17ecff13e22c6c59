// SPDX-License-Identifier: Apache-2.0
// Three real processes: a source, a target that relays while it receives, and a third that ends up with
// everything although the source is killed before the third is half done.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import path from "node:path";
import readline from "node:readline";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { MiB } from "../../src/core/units.ts";
import type { PeerAnswer, PeerOrder } from "../support/bytepath-peer.ts";
import { differences, makeFolder, makeTree } from "../support/tree.ts";

const sizes = Object.fromEntries(
  Array.from({ length: 48 }, (_, at) => [`d${at % 5}/k${at}`, MiB / 2 - at]),
);

test("a third replica gets everything through the second although the source is killed half-way", async () => {
  using tree = makeTree(sizes);
  using folder = makeFolder();
  const { artifactId } = tree.manifest;
  const roots = {
    second: path.join(folder.path, "second"),
    third: path.join(folder.path, "third"),
  };
  await using source = startPeer({ role: "source", sizes });
  const { endpoint: origin } = await source.until("serving");
  // A trickle until the third has begun, whatever the machine's load; the third's own until the source is dead.
  const toSourceSpeed = { bytesPerSecond: MiB / 2 };
  const toRelaySpeed = { bytesPerSecond: MiB / 2 };
  await using toSource = await slowLink(origin, toSourceSpeed);
  await using second = startPeer({
    role: "target",
    artifactId,
    root: roots.second,
    endpoints: [toSource.endpoint],
  });
  const { endpoint: relay } = await second.until("serving");
  await using toRelay = await slowLink(relay, toRelaySpeed);
  await using past = await slowLink(origin, { bytesPerSecond: MiB / 4 });
  await using third = startPeer({
    role: "target",
    artifactId,
    root: roots.third,
    endpoints: [toRelay.endpoint, past.endpoint],
  });
  await third.until("serving");
  await third.until("progress");
  const before = second.last("progress");
  assert.ok(
    before === null || before.piecesLeft > 0,
    "the third received while the second still did",
  );

  toSourceSpeed.bytesPerSecond = 64 * MiB;
  await second.until("done");
  source.kill();
  const atKill = third.last("progress");
  assert.ok(
    atKill !== null && atKill.piecesLeft > 0,
    "the source was killed before the third was done",
  );

  toRelaySpeed.bytesPerSecond = 64 * MiB;
  const { bytesBy } = await third.until("done");
  assert.deepEqual(differences(tree, roots.second), []);
  assert.deepEqual(differences(tree, roots.third), []);
  const fromRelay = bytesBy[toRelay.endpoint] ?? 0;
  const fromSource = bytesBy[past.endpoint] ?? 0;
  const total = Object.values(sizes).reduce((sum, size) => sum + size, 0);
  assert.equal(fromRelay + fromSource, total, "no verified piece came twice");
  assert.ok(fromRelay > total / 2);
});

interface Peer extends AsyncDisposable {
  /** The first answer of this type, waiting for it. */
  until<Type extends PeerAnswer["type"]>(type: Type): Promise<PeerAnswer & { type: Type }>;
  /** The latest answer of this type so far. */
  last<Type extends PeerAnswer["type"]>(type: Type): (PeerAnswer & { type: Type }) | null;
  /** SIGKILL: no goodbye. */
  kill(): void;
}

function startPeer(order: PeerOrder): Peer {
  const script = fileURLToPath(new URL("../support/bytepath-peer.ts", import.meta.url));
  const child = spawn(process.execPath, [script, JSON.stringify(order)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const answers: PeerAnswer[] = [];
  const news = new EventTarget();
  readline.createInterface({ input: child.stdout }).on("line", (line) => {
    answers.push(JSON.parse(line) as PeerAnswer);
    news.dispatchEvent(new Event("answer"));
  });
  return {
    until: (type) => untilAnswer(type, { child, answers, news }),
    last: (type) => answers.findLast((answer) => isOf(answer, type)) ?? null,
    kill: () => child.kill("SIGKILL"),
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    },
  } as Peer;
}

async function untilAnswer<Type extends PeerAnswer["type"]>(
  type: Type,
  { child, answers, news }: { child: ChildProcess; answers: PeerAnswer[]; news: EventTarget },
): Promise<PeerAnswer & { type: Type }> {
  const signal = AbortSignal.timeout(30_000);
  for (;;) {
    const found = answers.find((answer) => isOf(answer, type));
    if (found !== undefined) return found;
    const failed = answers.find((answer) => isOf(answer, "failed"));
    assert.equal(failed, undefined, failed?.message);
    assert.equal(child.exitCode, null, "the peer has ended");
    await once(news, "answer", { signal });
  }
}

function isOf<Type extends PeerAnswer["type"]>(
  answer: PeerAnswer,
  type: Type,
): answer is PeerAnswer & { type: Type } {
  return answer.type === type;
}

/** A link of so many bytes a second from the peer at `endpoint`. */
async function slowLink(
  endpoint: string,
  speed: { readonly bytesPerSecond: number },
): Promise<AsyncDisposable & { readonly endpoint: string }> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((near) => {
    const far = net.connect(Number(new URL(endpoint).port), "127.0.0.1");
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on("error", () => {}); // One end was killed: the other is closed below.
      socket.on("close", () => {
        near.destroy();
        far.destroy();
      });
    }
    near.pipe(far);
    far.on("data", (bytes) => void passOn(bytes));

    async function passOn(bytes: Buffer): Promise<void> {
      far.pause();
      await delay((1_000 * bytes.length) / speed.bytesPerSecond);
      near.write(bytes);
      far.resume();
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  return {
    endpoint: `http://127.0.0.1:${address.port}`,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
