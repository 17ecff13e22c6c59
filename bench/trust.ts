// SPDX-License-Identifier: Apache-2.0
// What signatures cost: a tree like a JIT cache's, taken by one process from another, signed and unsigned
// in turn, each into a fresh folder of a memory file system; and how many signatures a core verifies.

import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import { MiB } from "../src/core/units.ts";
import { generateKey, isSignatureOf, signerFrom } from "../src/trust/keys.ts";
import { makeTree } from "./artifacts-trees.ts";
import type { Emit } from "./main.ts";
import type { Order, Served, Timed } from "./trust-peer.ts";

const rounds = 7;
const verifyMs = 1_000;
const signedBytes = 1_024;

export async function run(emit: Emit): Promise<void> {
  measureSignatures(emit);
  const base = fs.mkdtempSync("/dev/shm/relight-bench-");
  try {
    await compareTree(emit, base);
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

async function compareTree(emit: Emit, base: string): Promise<void> {
  const tree = makeTree(path.join(base, "tree"));
  const trust = path.join(base, "trust");
  await using source = startPeer("serve", trust, tree.root);
  const served = (await source.next()) as Served;
  await using target = startPeer("take", trust);
  const times = { signed: [] as Timed[], unsigned: [] as Timed[] };
  // One of each first, which is thrown away: threads start and code is compiled.
  for (let round = -1; round < rounds; round++) {
    for (const kind of round % 2 === 0
      ? (["signed", "unsigned"] as const)
      : (["unsigned", "signed"] as const)) {
      const root = path.join(base, "out");
      const { endpoint, artifactId } = served;
      const isSigned = kind === "signed";
      const order: Order = { endpoint, artifactId, root, isSigned };
      target.say(JSON.stringify(order));
      const timed = (await target.next()) as Timed;
      if (round >= 0) times[kind].push(timed);
      fs.rmSync(root, { recursive: true });
    }
  }
  const [value, baseline] = [times.signed, times.unsigned].map(
    (each) => median(each.map(({ ms }) => ms)) / 1_000,
  );
  if (value === undefined || baseline === undefined) throw new Error("Nothing was measured");
  emit({
    name: "trust.tree.signed_vs_unsigned",
    value,
    unit: "s",
    baseline,
    ratio: baseline / value,
  });
  for (const kind of ["signed", "unsigned"] as const) {
    const all = times[kind].map(({ ms }) => ms / 1_000);
    emit({ name: `trust.tree.${kind}.fastest`, value: Math.min(...all), unit: "s" });
    emit({ name: `trust.tree.${kind}.slowest`, value: Math.max(...all), unit: "s" });
    const granted = median(times[kind].map(({ grantMs }) => grantMs)) / 1_000;
    emit({ name: `trust.tree.${kind}.until_granted`, value: granted, unit: "s" });
  }
  emit({ name: "trust.tree.sign", value: served.signMs / 1_000, unit: "s" });
  emit({ name: "trust.tree.statement", value: served.statementBytes / MiB, unit: "MiB" });
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
