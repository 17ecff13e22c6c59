// SPDX-License-Identifier: Apache-2.0
// Seconds to the first token of a Hugging Face model class on two GPUs: from its checkpoint in memory (a
// memory file system, so that no disk is measured), against from a live replica through `relight run
// --weights`. Dense and a mixture of experts, BF16 and FP8, one GPU and two. Equal logits are equal bit for
// bit, or the line says 0. One pair is started as a user would; the others import and open their GPUs
// together beforehand and are then let go one after the other, because the import is the same on both sides.
//
// HF_FOLDER: where the checkpoints go, 40 GB (default /dev/shm). HF_SETS: which, comma-separated.

import fs from "node:fs";
import path from "node:path";
import type { Emit } from "./main.ts";
import {
  endGroup,
  HfReplica,
  makeCheckpoint,
  type Rank,
  type Replica,
  startCoordinator,
} from "./weights-hf-replicas.ts";

const sets = (process.env["HF_SETS"] ?? "dense-bf16,dense-fp8,moe-bf16,moe-fp8").split(",");
const degrees = [1, 2] as const;
const makeMsMax = 90_000;
const startMsMax = 60_000;
/** In which a dozen processes import PyTorch and open their GPUs. */
const importMs = Number(process.env["HF_IMPORT_MS"] ?? "20000");

interface Pair {
  readonly name: string;
  readonly disk: HfReplica;
  readonly peer: HfReplica;
}

export async function run(emit: Emit): Promise<void> {
  const base = process.env["HF_FOLDER"] ?? "/dev/shm";
  const folder = fs.mkdtempSync(path.join(base, "relight-hf-"));
  const coordinator = startCoordinator(folder);
  const pairs: Pair[] = [];
  try {
    const made = await makeAll(folder);
    let port = 18_510;
    const pairOf = (set: string, tp: number): Pair => {
      const pair = makePair({ set, tp, port }, folder);
      port += 2;
      pairs.push(pair);
      return pair;
    };
    const [first] = made;
    if (first === undefined || !(await measure(emit, pairOf(first, 1), ".whole")))
      throw new Error("Nothing can be loaded from a live replica here: the rest is not tried");
    const held = degrees.flatMap((tp) => made.map((set) => pairOf(set, tp)));
    for (const { disk, peer } of held) for (const replica of [disk, peer]) replica.hold();
    await new Promise((resolve) => setTimeout(resolve, importMs));
    for (const pair of held) await measure(emit, pair, "");
  } finally {
    for (const { disk, peer } of pairs) for (const replica of [disk, peer]) replica.end();
    endGroup(coordinator);
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** @returns the sets whose checkpoint could be made */
async function makeAll(folder: string): Promise<string[]> {
  const made = await Promise.allSettled(
    sets.map((set, at) => makeCheckpoint(set, { folder, gpu: at % 2, msMax: makeMsMax })),
  );
  return sets.filter((set, at) => {
    const outcome = made[at];
    if (outcome?.status === "rejected") console.error(`weights-hf: ${set}: ${outcome.reason}`);
    return outcome?.status === "fulfilled";
  });
}

/** The target's GPU is the source's neighbour; of two ranks each reads from the other GPU. */
function makePair(
  { set, tp, port }: { set: string; tp: number; port: number },
  folder: string,
): Pair {
  const [own, other] = tp === 1 ? ["0", "1"] : ["0,1", "1,0"];
  return {
    name: `weights_hf.${set.replaceAll("-", "_")}.tp${tp}`,
    disk: new HfReplica({ set, tp, port, gpus: own, fromDisk: true }, folder),
    peer: new HfReplica({ set, tp, port: port + 1, gpus: other, fromDisk: false }, folder),
  };
}

/** One that fails costs its own lines. @returns whether the target loaded from the source */
async function measure(emit: Emit, { name, disk, peer }: Pair, suffix: string): Promise<boolean> {
  try {
    disk.release();
    const fromDisk = await disk.healthy(startMsMax);
    console.error(JSON.stringify({ name: `${name}${suffix}.disk`, ...fromDisk }));
    peer.release();
    const fromPeer = await peer.healthy(startMsMax);
    console.error(JSON.stringify({ name: `${name}${suffix}.peer`, ...fromPeer }));
    report(emit, `${name}${suffix}`, { fromDisk, fromPeer });
    return (
      fromPeer.ranks.every(({ from }) => from === "peer") || process.env["HF_DEVICE"] === "cpu"
    );
  } catch (thrown) {
    console.error(`weights-hf: ${name}${suffix}: ${thrown}`);
    return false;
  } finally {
    disk.end();
    peer.end();
  }
}

function report(
  emit: Emit,
  name: string,
  { fromDisk, fromPeer }: { fromDisk: Replica; fromPeer: Replica },
): void {
  const isLive = fromPeer.ranks.every(({ from }) => from === "peer");
  const isEqual = fromPeer.ranks.every(
    ({ logits }, rank) => logits.sha256 === fromDisk.ranks[rank]?.logits.sha256,
  );
  emit({ name: `${name}.from_peer`, value: isLive ? 1 : 0, unit: "bool" });
  emit({ name: `${name}.logits_equal`, value: isEqual ? 1 : 0, unit: "bool" });
  const bytes = sum(fromPeer, ({ report }) => report?.bytes ?? 0);
  const copyMs = slowest(fromPeer, ({ report }) => report?.copyMs ?? 0);
  emit({ name: `${name}.bytes`, value: bytes, unit: "B" });
  emit({ name: `${name}.copy_gbs`, value: copyMs > 0 ? bytes / copyMs / 1e6 : 0, unit: "GB/s" });
  const phases = ["import_s", "context_s", "structure_s", "weights_s", "first_token_s"] as const;
  for (const phase of phases)
    emit({
      name: `${name}.peer.${phase}`,
      value: slowest(fromPeer, (rank) => rank[phase] ?? 0),
      unit: "s",
    });
  emit({ name: `${name}.disk.load_s`, value: slowest(fromDisk, loadOf), unit: "s" });
  emit({
    name: `${name}.disk.first_token_s`,
    value: slowest(fromDisk, ({ first_token_s: s }) => s),
    unit: "s",
  });
  const versus = (what: string, value: number, baseline: number) =>
    emit({ name: `${name}.${what}`, value, unit: "s", baseline, ratio: baseline / value });
  versus("load.vs_disk", slowest(fromPeer, loadOf), slowest(fromDisk, loadOf));
  versus("first_token.vs_disk", slowest(fromPeer, toToken), slowest(fromDisk, toToken));
  versus("healthy.vs_disk", fromPeer.wholeMs / 1_000, fromDisk.wholeMs / 1_000);
}

/** From an open GPU to weights that are there, whichever way. */
function loadOf({
  structure_s: structure = 0,
  weights_s: weights = 0,
  disk_s: disk = 0,
}: Rank): number {
  return structure + weights + disk;
}

function toToken(rank: Rank): number {
  return loadOf(rank) + rank.first_token_s;
}

function slowest({ ranks }: Replica, seconds: (rank: Rank) => number): number {
  return Math.max(...ranks.map(seconds));
}

function sum({ ranks }: Replica, amount: (rank: Rank) => number): number {
  return ranks.reduce((total, rank) => total + amount(rank), 0);
}
