// SPDX-License-Identifier: Apache-2.0
// How fast an artifact moves from one process to another on this machine, verified and installed,
// against the tools that one would use instead. Every round runs ours and every rival once, each into a
// fresh folder of a memory file system; lines are medians. Ours is timed from the order to a running
// target until the receipt is written; rivals from the start of their command.

import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import { fileURLToPath } from "node:url";
import { GiB, MiB } from "../src/core/units.ts";
import type { Offered, Pulled, PullOrder } from "./artifacts-peer.ts";
import { loopbackSpeed, missing, type Rival, RivalDaemons, rivals } from "./artifacts-rivals.ts";
import { addFiles, makeBig, makeTree, type Tree } from "./artifacts-trees.ts";
import type { Emit } from "./main.ts";

const rounds = 5;
/** Of each of two links, as of two sources with a slow network card each. */
const linkBytesPerSecond = 150 * MiB;

export async function run(emit: Emit): Promise<void> {
  const base = fs.mkdtempSync("/dev/shm/relight-bench-");
  fs.chmodSync(base, 0o755);
  try {
    await using daemons = await RivalDaemons.start(base);
    const context: Context = { base, daemons, emit };
    const big = makeBig(path.join(base, "big"));
    await compare(context, {
      name: "big",
      tree: big,
      against: [rivals.nginxCurl, rivals.nginxTwoCurls],
    });
    await compareTwoSources(context, big);
    fs.rmSync(big.root, { recursive: true });
    const tree = makeTree(path.join(base, "tree"));
    await compare(context, {
      name: "tree",
      tree,
      against: [rivals.tarNc, rivals.rsync, rivals.cFloor, rivals.tarFile],
    });
    await measureDelta(context, tree);
  } finally {
    fs.rmSync(base, { recursive: true, force: true });
  }
}

interface Context {
  readonly base: string;
  readonly daemons: RivalDaemons;
  readonly emit: Emit;
}

async function compare(
  { base, daemons, emit }: Context,
  { name, tree, against }: { name: string; tree: Tree; against: readonly Rival[] },
): Promise<void> {
  const able = against.filter((rival) => {
    const lacking = missing(rival.needs);
    if (lacking.length > 0) console.error(`${rival.name} is left out: no ${lacking.join(", ")}`);
    return lacking.length === 0;
  });
  await using source = startPeer("source", tree.root);
  const offered = (await source.ask("seal")) as Offered;
  const ours: Pulled[] = [];
  const theirs = new Map<Rival, number[]>(able.map((rival) => [rival, []]));
  const cpu: number[] = [];
  let targetPeak = 0;
  for (let round = 0; round < rounds; round++) {
    const root = path.join(base, "out");
    await using target = await startTarget();
    const { cpuMs: cpuBefore } = await statsOf(source);
    const pulled = await pullFrom(target, { ...offered, endpoints: [offered.endpoint], root });
    const { cpuMs: cpuAfter } = await statsOf(source);
    ours.push(pulled);
    cpu.push((pulled.cpuMs + cpuAfter - cpuBefore) / 1_000);
    if (round === 0) checkSame(tree.root, root);
    targetPeak = Math.max(targetPeak, (await statsOf(target)).peakBytes);
    fs.rmSync(root, { recursive: true });
    for (const [rival, times] of theirs) {
      times.push(await daemons.time(rival, root));
      fs.rmSync(root, { recursive: true });
    }
  }
  const seconds = ours.map((pulled) => pulled.ms / 1_000);
  const middle = median(seconds);
  emitSpread(emit, `artifacts.${name}`, seconds);
  emit({ name: `artifacts.${name}.cpu_of_both_ends`, value: median(cpu), unit: "s" });
  for (const [rival, times] of theirs) {
    const baseline = median(times);
    const line = `artifacts.${name}.vs_${rival.name}`;
    emit({ name: line, value: middle, unit: "s", baseline, ratio: baseline / middle });
    emitSpread(emit, `artifacts.${name}.${rival.name}`, times);
  }
  if (name === "big") {
    const raw = await loopbackSpeed();
    const speed = tree.bytes / GiB / middle;
    const held = raw === null ? {} : { baseline: raw, ratio: speed / raw };
    emit({ name: "artifacts.big.vs_loopback", value: speed, unit: "GiB/s", ...held });
  }
  for (const phase of ["manifestMs", "pullMs", "installMs"] as const) {
    const value = median(ours.map((pulled) => pulled[phase])) / 1_000;
    emit({ name: `artifacts.${name}.${phase.replace("Ms", "_s")}`, value, unit: "s" });
  }
  const { peakBytes: sourcePeak } = await statsOf(source);
  emit({ name: `artifacts.${name}.source_peak`, value: sourcePeak / MiB, unit: "MiB" });
  emit({ name: `artifacts.${name}.target_peak`, value: targetPeak / MiB, unit: "MiB" });
}

/** Two sources against one: each behind a link of its own, and both as fast as this machine can. */
async function compareTwoSources({ base, emit }: Context, tree: Tree): Promise<void> {
  await using first = startPeer("source", tree.root);
  await using second = startPeer("source", tree.root);
  const { endpoint, artifactId } = (await first.ask("seal")) as Offered;
  const { endpoint: other } = (await second.ask("seal")) as Offered;
  await using slowFirst = startPeer("link", endpoint, `${linkBytesPerSecond}`);
  await using slowSecond = startPeer("link", other, `${linkBytesPerSecond}`);
  const slow = [await endpointOf(slowFirst), await endpointOf(slowSecond)];
  for (const [name, endpoints, times] of [
    ["artifacts.two_sources.vs_one", slow, 2],
    ["artifacts.two_sources.unlimited_vs_one", [endpoint, other], rounds],
  ] as const) {
    const one: number[] = [];
    const two: number[] = [];
    for (let round = 0; round < times; round++) {
      one.push(await timePull(base, { artifactId, endpoints: endpoints.slice(0, 1) }));
      two.push(await timePull(base, { artifactId, endpoints }));
    }
    const [baseline, value] = [median(one), median(two)];
    emit({ name, value, unit: "s", baseline, ratio: baseline / value });
  }
}

/** One file in a hundred is new: what moves, over what the tree holds. */
async function measureDelta({ base, emit }: Context, tree: Tree): Promise<void> {
  await using source = startPeer("source", tree.root);
  const before = (await source.ask("seal")) as Offered;
  await using target = await startTarget();
  const root = path.join(base, "out");
  await pullFrom(target, { ...before, endpoints: [before.endpoint], root });
  const sentBefore = (await statsOf(source)).bytesSent;
  addFiles(tree.root, { first: tree.files, count: tree.files / 100 });
  const after = (await source.ask("seal")) as Offered;
  const pulled = await pullFrom(target, { ...after, endpoints: [after.endpoint], root });
  checkSame(tree.root, root);
  const moved = (await statsOf(source)).bytesSent - sentBefore + after.manifestBytes;
  emit({ name: "artifacts.delta.bytes_ratio", value: moved / after.bytes, unit: "ratio" });
  emit({ name: "artifacts.delta.seconds", value: pulled.ms / 1_000, unit: "s" });
}

async function timePull(base: string, order: Omit<PullOrder, "root">): Promise<number> {
  const root = path.join(base, "out");
  await using target = await startTarget();
  const { ms } = await pullFrom(target, { ...order, root });
  fs.rmSync(root, { recursive: true });
  return ms / 1_000;
}

interface Peer extends AsyncDisposable {
  ask(order: string): Promise<unknown>;
}

function startPeer(...words: readonly string[]): Peer {
  const script = fileURLToPath(new URL("./artifacts-peer.ts", import.meta.url));
  const child = spawn(process.execPath, [script, ...words], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = readline.createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    ask: async (order) => {
      child.stdin.write(`${order}\n`);
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

/** With its threads started, as an agent's are when it is told where an artifact is. */
async function startTarget(): Promise<Peer> {
  const target = startPeer("target");
  await target.ask("ready");
  return target;
}

async function pullFrom(target: Peer, { artifactId, endpoints, root }: PullOrder): Promise<Pulled> {
  return (await target.ask(JSON.stringify({ artifactId, endpoints, root }))) as Pulled;
}

async function endpointOf(link: Peer): Promise<string> {
  return ((await link.ask("endpoint")) as { endpoint: string }).endpoint;
}

interface Stats {
  readonly peakBytes: number;
  readonly cpuMs: number;
  readonly bytesSent: number;
}

/** A target has sent nothing and says so by leaving it out. */
async function statsOf(peer: Peer): Promise<Stats> {
  const { peakBytes = 0, cpuMs = 0, bytesSent = 0 } = (await peer.ask("stats")) as Partial<Stats>;
  return { peakBytes, cpuMs, bytesSent };
}

/** @throws Error when a byte or a name differs. */
function checkSame(source: string, target: string): void {
  const names = filesOf(source);
  const got = filesOf(target).filter((name) => !name.startsWith(".relight/"));
  if (names.join("\n") !== got.join("\n")) throw new Error("Other files arrived than were sent");
  for (const name of names) {
    const wanted = fs.readFileSync(path.join(source, name));
    if (!wanted.equals(fs.readFileSync(path.join(target, name))))
      throw new Error(`${name} differs`);
  }
}

function filesOf(root: string): string[] {
  return fs
    .readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((item) => item.isFile())
    .map((item) => path.relative(root, path.join(item.parentPath, item.name)))
    .sort();
}

function emitSpread(emit: Emit, name: string, seconds: readonly number[]): void {
  emit({ name: `${name}.fastest`, value: Math.min(...seconds), unit: "s" });
  emit({ name: `${name}.slowest`, value: Math.max(...seconds), unit: "s" });
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((left, right) => left - right);
  const middle = sorted.length >>> 1;
  const [low = 0, high = 0] = [sorted[middle - 1 + (sorted.length % 2)], sorted[middle]];
  return (low + high) / 2;
}
