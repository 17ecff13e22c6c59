// SPDX-License-Identifier: Apache-2.0
// What signatures and TLS cost: a tree like a JIT cache's, signed and unsigned, and four large files, behind
// mutual TLS and in plaintext, taken by one process from another in turn, each into a fresh folder of a
// memory file system; and how many signatures a core verifies.

import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import { MiB } from "../src/core/units.ts";
import { generateKey, isSignatureOf, signerFrom } from "../src/trust/keys.ts";
import { makeBig, makeTree } from "./artifacts-trees.ts";
import type { Emit } from "./main.ts";
import type { Order, Served, Timed } from "./trust-peer.ts";

const rounds = 7;
const verifyMs = 1_000;
const signedBytes = 1_024;

/** How one thing is taken; `first` is held against `second`. */
interface Pair {
  readonly name: string;
  readonly first: string;
  readonly second: string;
  readonly order: (kind: string, served: Served) => Pick<Order, "endpoint" | "isSigned">;
}

const signedOrNot: Pair = {
  name: "tree",
  first: "signed",
  second: "unsigned",
  order: (kind, { plain }) => ({ endpoint: plain, isSigned: kind === "signed" }),
};
const secureOrNot: Pair = {
  name: "big",
  first: "mtls",
  second: "plain",
  order: (kind, { plain, secure }) => ({
    endpoint: kind === "mtls" ? secure : plain,
    isSigned: true,
  }),
};

export async function run(emit: Emit): Promise<void> {
  measureSignatures(emit);
  const base = fs.mkdtempSync("/dev/shm/relight-bench-");
  try {
    const tree = makeTree(path.join(base, "tree"));
    await comparePair(emit, { base, root: tree.root, pair: signedOrNot });
    fs.rmSync(tree.root, { recursive: true });
    const big = makeBig(path.join(base, "big"));
    await comparePair(emit, { base, root: big.root, pair: secureOrNot });
  } finally {
    fs.rmSync(base, { recursive: true, force: true });
  }
}

function measureSignatures(emit: Emit): void {
  for (const algorithm of ["ed25519", "p256"] as const) {
    const signer = signerFrom(generateKey(algorithm));
    const bytes = Buffer.alloc(signedBytes, 7);
    const signature = signer.sign(bytes);
    const began = performance.now();
    let count = 0;
    while (performance.now() - began < verifyMs)
      for (let each = 0; each < 100; each++) {
        if (!isSignatureOf(signer.publicKey, bytes, signature))
          throw new Error("It is no signature");
        count++;
      }
    const value = (count / (performance.now() - began)) * 1_000;
    emit({ name: `trust.${algorithm}.verified`, value, unit: "signatures/s" });
  }
}

async function comparePair(
  emit: Emit,
  { base, root, pair }: { readonly base: string; readonly root: string; readonly pair: Pair },
): Promise<void> {
  const { name, first, second } = pair;
  const trust = path.join(base, "trust");
  await using source = startPeer("serve", trust, root);
  const served = (await source.next()) as Served;
  await using target = startPeer("take", trust);
  const times = new Map<string, Timed[]>([first, second].map((kind) => [kind, []]));
  // One of each first, which is thrown away: threads start and code is compiled.
  for (let round = -1; round < rounds; round++) {
    for (const kind of round % 2 === 0 ? [first, second] : [second, first]) {
      const out = path.join(base, "out");
      const { artifactId } = served;
      const order: Order = { artifactId, root: out, ...pair.order(kind, served) };
      target.say(JSON.stringify(order));
      const timed = (await target.next()) as Timed;
      if (round >= 0) times.get(kind)?.push(timed);
      fs.rmSync(out, { recursive: true });
    }
  }
  const [value = 0, baseline = 0] = [...times.values()].map(
    (each) => median(each.map(({ ms }) => ms)) / 1_000,
  );
  const line = `trust.${name}.${first}_vs_${second}`;
  emit({ name: line, value, unit: "s", baseline, ratio: baseline / value });
  for (const [kind, all] of times) {
    const seconds = all.map(({ ms }) => ms / 1_000);
    emit({ name: `trust.${name}.${kind}.fastest`, value: Math.min(...seconds), unit: "s" });
    emit({ name: `trust.${name}.${kind}.slowest`, value: Math.max(...seconds), unit: "s" });
    const granted = median(all.map(({ grantMs }) => grantMs)) / 1_000;
    emit({ name: `trust.${name}.${kind}.until_granted`, value: granted, unit: "s" });
  }
  emit({ name: `trust.${name}.sign`, value: served.signMs / 1_000, unit: "s" });
  emit({ name: `trust.${name}.statement`, value: served.statementBytes / MiB, unit: "MiB" });
}

interface Peer extends AsyncDisposable {
  say(line: string): void;
  next(): Promise<unknown>;
}

function startPeer(...words: readonly string[]): Peer {
  const script = path.join(import.meta.dirname, "trust-peer.ts");
  const child = spawn(process.execPath, [script, ...words], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = readline.createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    say: (line) => child.stdin.write(`${line}\n`),
    next: async () => {
      const { value, done } = await lines.next();
      if (done) throw new Error("A measured process has ended");
      return JSON.parse(value);
    },
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    },
  };
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((left, right) => left - right);
  return sorted[sorted.length >>> 1] ?? 0;
}
