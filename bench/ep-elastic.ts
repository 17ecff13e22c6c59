// SPDX-License-Identifier: Apache-2.0
// An expert group while its membership changes: what survivors notice of a join, a leave and a death, how
// long each takes, and a soak. Ranks are processes (src/cli/ep-rank-worker.ts), each step is one captured
// graph of a mixture-of-experts layer and every output row is checked. Needs GPUs; RELIGHT_BENCH_FAKE=1
// rehearses on host memory. RELIGHT_BENCH_CUBLAS names libcublas, RELIGHT_BENCH_LEGS some legs by comma,
// RELIGHT_BENCH_SOAK_S the soak's seconds.

import { randomInt } from "node:crypto";
import type { RankUse, StepRecord } from "../src/cli/ep-link.ts";
import { nowMs, type RankProcess, Ranks, type RanksOptions } from "../src/cli/ep-ranks.ts";
import { goodStepAtMs, summarise, toldAtMs } from "../src/cli/ep-stats.ts";
import { CudaDriver } from "../src/gpu/cuda.ts";
import type { Emit } from "./main.ts";

const isFake = process.env["RELIGHT_BENCH_FAKE"] === "1";
const blasFile = process.env["RELIGHT_BENCH_CUBLAS"] ?? null;
const soakMs = 1_000 * Number(process.env["RELIGHT_BENCH_SOAK_S"] ?? "120");
const slotCount = 4;
/**
 * The elastic test plans that NIXL's expert-parallel example publishes: each phase lists its ranks, and a
 * negative one is killed in it, here by SIGKILL.
 */
const plans: Readonly<Record<string, readonly (readonly number[])[]>> = {
  expansion_contraction: [
    [0, 1, 2, 3],
    [0, 1, 2, 3, 4, 5, 6, 7],
    [0, 1, 2, 3, 4, -6, 7],
    [0, 1, 2, 3, 4, 5, 6, 7],
  ],
  expansion_fault_contraction: [
    [0, 1],
    [0, 1, 2, 3],
    [0, 1, -2, 3],
    [0, 3],
  ],
};
const gpuShape = { hidden: 2_048, inner: 1_024, experts: 32, topk: 4, tokens: 64 };
const fakeShape = { hidden: 32, inner: 16, experts: 8, topk: 2, tokens: 4 };
const cycles = isFake ? 10 : 100;
const rounds = isFake ? 2 : 5;

interface Leg {
  readonly name: string;
  readonly secondsMax: number;
  readonly run: (emit: Emit, signal: AbortSignal) => Promise<void>;
}

const legs: readonly Leg[] = [
  { name: "join", secondsMax: 60, run: measureJoin },
  { name: "kill", secondsMax: 90, run: measureKill },
  { name: "cycles", secondsMax: 90, run: measureCycles },
  { name: "plans", secondsMax: 60, run: replayPlans },
  { name: "soak", secondsMax: soakMs / 1_000 + 60, run: soak },
];

export async function run(emit: Emit): Promise<void> {
  const chosen = process.env["RELIGHT_BENCH_LEGS"]?.split(",");
  for (const leg of legs) {
    if (chosen !== undefined && !chosen.includes(leg.name)) continue;
    const began = nowMs();
    try {
      await leg.run(emit, AbortSignal.timeout(1_000 * leg.secondsMax));
    } catch (error) {
      // The legs are independent: a broken one leaves the others' lines.
      console.error(`ep-elastic: ${leg.name} failed: ${error}`);
      process.exitCode = 1;
    }
    console.error(`ep-elastic: ${leg.name} took ${((nowMs() - began) / 1_000).toFixed(1)} s`);
  }
}

type Opening = Partial<RanksOptions> & { readonly redundant?: number; readonly slots?: number };

async function open(more: Opening = {}): Promise<Ranks> {
  const { redundant = 0, slots = slotCount, ...rest } = more;
  const deviceCount = isFake ? 1 : await countGpus();
  const sizes = isFake ? fakeShape : gpuShape;
  return new Ranks({
    ...{
      backend: isFake ? "fake" : "cuda",
      deviceCount,
      timeoutMs: 2_000,
      blasFile,
      stepsPerRun: 1,
    },
    ...{ comesBack: false, blocks: deviceCount >= slots ? 132 : 32 },
    shape: {
      ...sizes,
      group: "bench",
      slotCount: slots,
      redundant,
      localExpertsMax: sizes.experts,
    },
    ...rest,
  });
}

async function countGpus(): Promise<number> {
  await using driver = new CudaDriver();
  return (await driver.devices()).length;
}

/** Two ranks become four, several times; what the two notice, and where a joiner's time goes. */
async function measureJoin(emit: Emit, signal: AbortSignal): Promise<void> {
  await using ranks = await open();
  await begin(ranks, 2, signal);
  const survivors = members(ranks);
  const found: JoinRound[] = [];
  for (let round = 0; round < rounds; round += 1) {
    found.push(await joinOnce(ranks, survivors, signal));
    const joined = members(ranks).filter((rank) => !survivors.includes(rank));
    const remove = joined.flatMap(({ slot }) => (slot === null ? [] : [slot]));
    await ranks.operate({ kind: "remove", remove }, signal);
    await ranks.until(() => joined.every(({ isAlive }) => !isAlive), "the leavers' end", signal);
  }
  const line = (name: string, pick: (round: JoinRound) => number, unit = "ms") =>
    emit({ name, value: median(found.map(pick)), unit });
  line("ep.join.step_before_ms", (round) => round.stepMs);
  line("ep.join.worst_iteration_ms", (round) => round.worstMs);
  emit({
    name: "ep.join.worst_iteration_of_all_ms",
    value: Math.max(...found.map(({ worstMs }) => worstMs)),
    unit: "ms",
  });
  line("ep.activate.ms", (round) => round.activateMs);
  line("ep.join.ready_to_first_step_ms", (round) => round.scaleMs);
  for (const name of Object.keys(found[0]?.phases ?? {})) {
    line(`ep.join.phase.${name}_ms`, (round) => round.phases[name] ?? 0);
  }
  emitRows(emit, "ep.join", ranks);
}

interface JoinRound {
  readonly stepMs: number;
  readonly worstMs: number;
  /** What the switching step took more than the median step with the new members. */
  readonly activateMs: number;
  /** From when both joiners had their memory to their first good step. */
  readonly scaleMs: number;
  readonly phases: Readonly<Record<string, number>>;
}

async function joinOnce(
  ranks: Ranks,
  survivors: readonly RankProcess[],
  signal: AbortSignal,
): Promise<JoinRound> {
  await pause(1_000);
  const began = nowMs();
  const before = summarise(survivors, { fromMs: began - 800, toMs: began });
  const joiners = ranks.start(2);
  await ranks.operate({ kind: "scale", ranks: 4 }, signal);
  await goodSteps(ranks, joiners, signal);
  const ended = nowMs();
  await pause(1_000);
  const during = summarise(survivors, { fromMs: began, toMs: ended });
  const after = summarise(survivors, { fromMs: ended, toMs: nowMs() });
  const switching = survivors.flatMap((rank) => switchingStep(rank, began));
  const first = joiners.map((rank) => phaseAt(rank, "first step"));
  const ready = joiners.map((rank) => phaseAt(rank, "layer"));
  return {
    stepMs: before.medianMs,
    worstMs: during.worstMs,
    activateMs: Math.max(0, Math.max(...switching.map(({ ms }) => ms)) - after.medianMs),
    scaleMs: Math.max(...first) - Math.max(...ready),
    phases: medians(joiners.map(phasesOf)),
  };
}

/** The survivor's step from which the joiners take part. */
function switchingStep(rank: RankProcess, afterMs: number): StepRecord[] {
  const flip = rank.events.findLast(({ atMs, event }) => atMs >= afterMs && event.type === "flip");
  if (flip?.event.type !== "flip") return [];
  const { atStep } = flip.event;
  return rank.steps.filter(({ step, endedAtMs }) => step === atStep && endedAtMs >= afterMs);
}

/** Milliseconds of each part of a joiner's way from nothing to its first good step. */
function phasesOf(rank: RankProcess): Record<string, number> {
  const event = (type: Parameters<typeof toldAtMs>[1]) => toldAtMs(rank, type, 0) ?? Number.NaN;
  const mapped = rank.events.filter((one) => one.event.type === "mapped").map(({ atMs }) => atMs);
  const moments: [string, number][] = [
    ["process", phaseAt(rank, "process")],
    ["seat", phaseAt(rank, "seated")],
    ["context_kernels_and_window", phaseAt(rank, "kernels")],
    ["layer_and_graph", phaseAt(rank, "layer")],
    ["map", Math.max(...mapped)],
    ["experts_from_peers", Math.max(event("prepared"), ...mapped)],
    ["activate", event("flip")],
    ["first_good_step", phaseAt(rank, "first step")],
  ];
  let last = rank.startedAtMs;
  const phases = moments.map(([name, atMs]) => {
    const ms = Math.max(0, atMs - last);
    last = Math.max(last, atMs);
    return [name, ms] as const;
  });
  return Object.fromEntries([...phases, ["all", last - rank.startedAtMs]]);
}

/** One of four is killed; every expert has a second copy, so that survivors lose nobody's part. */
async function measureKill(emit: Emit, signal: AbortSignal): Promise<void> {
  const experts = (isFake ? fakeShape : gpuShape).experts;
  await using ranks = await open({ redundant: experts });
  await begin(ranks, 4, signal);
  const found: Record<string, number>[] = [];
  for (let round = 0; round < rounds; round += 1) {
    await pause(300);
    found.push(await killOnce(ranks, signal));
    await ranks.until(() => ranks.group.keeper.group?.operation === null, "the recovery", signal);
    await begin(ranks, 4, signal);
  }
  for (const [name, value] of Object.entries(medians(found))) {
    emit({ name: `ep.kill.${name}`, value, unit: name.endsWith("_ms") ? "ms" : "steps" });
  }
  const worst = Math.max(...found.map((one) => one["detect_to_next_good_iteration_ms"] ?? 0));
  emit({ name: "ep.kill.detect_to_next_good_iteration_of_all_ms", value: worst, unit: "ms" });
  emitRows(emit, "ep.kill", ranks);
}

async function killOnce(ranks: Ranks, signal: AbortSignal): Promise<Record<string, number>> {
  const all = members(ranks);
  const victim = all[randomInt(all.length)];
  const rest = all.filter((rank) => rank !== victim);
  const began = nowMs();
  victim?.signal("SIGKILL");
  const masked = () => rest.map((rank) => toldAtMs(rank, "died", began));
  await ranks.until(() => masked().every((at) => at !== null), "every mask", signal);
  const lastMask = Math.max(...masked().map((at) => at ?? 0));
  const good = () => rest.map((rank) => goodStepAtMs(rank, lastMask));
  await ranks.until(() => good().every((at) => at !== null), "good steps", signal);
  const next = Math.max(...good().map((at) => at ?? 0));
  const detected = victim?.hungUpAtMs ?? began;
  const faulty = rest.map(({ steps }) => steps.filter((s) => !s.isGood && s.endedAtMs > began));
  return {
    kill_to_detect_ms: detected - began,
    detect_to_masked_ms: lastMask - detected,
    detect_to_next_good_iteration_ms: next - detected,
    kill_to_next_good_iteration_ms: next - began,
    faulty_iterations: Math.max(...faulty.map(({ length }) => length)),
  };
}

/** One rank leaves and comes back again and again; nothing of the others may grow. */
async function measureCycles(emit: Emit, signal: AbortSignal): Promise<void> {
  await using ranks = await open({ comesBack: true });
  await begin(ranks, 3, signal);
  const [first, second, third] = members(ranks);
  if (first === undefined || second === undefined || third === undefined) return;
  const uses: (RankUse | undefined)[] = [];
  const began = nowMs();
  for (let cycle = 0; cycle < cycles; cycle += 1) {
    await ranks.operate({ kind: "remove", remove: [third.slot ?? -1] }, signal);
    await ranks.operate({ kind: "scale", ranks: 3 }, signal);
    await goodSteps(ranks, [third], signal);
    if (cycle === 9) uses.push(first.uses.at(-1));
  }
  uses.push(first.uses.at(-1));
  emit({ name: "ep.cycles.count", value: cycles, unit: "cycles" });
  emit({ name: "ep.cycles.ms_each", value: (nowMs() - began) / cycles, unit: "ms" });
  const [early, late] = uses;
  const grown = (pick: (use: RankUse) => number) =>
    early === undefined || late === undefined ? Number.NaN : pick(late) - pick(early);
  emit({ name: "ep.cycles.gpu_grown", value: -grown((use) => use.gpuFreeBytes), unit: "B" });
  emit({
    name: "ep.cycles.descriptors_grown",
    value: grown((use) => use.descriptors),
    unit: "files",
  });
  emit({ name: "ep.cycles.resident_grown", value: grown((use) => use.residentBytes), unit: "B" });
  emitRows(emit, "ep.cycles", ranks);
}

/** Both plans, each under traffic; after each phase exactly its ranks are members and step on. */
async function replayPlans(emit: Emit, signal: AbortSignal): Promise<void> {
  for (const [name, phases] of Object.entries(plans)) {
    await using ranks = await open({ slots: Math.max(...phases.flat()) + 1 });
    let before: readonly number[] = [];
    for (const phase of phases) {
      before = await enterPhase(ranks, { before, phase, signal });
      const slots = members(ranks).map(({ slot }) => slot);
      if (slots.sort().join() !== before.join()) {
        throw new Error(`${name}: the members are ${slots}, the plan says ${before}`);
      }
    }
    emit({ name: `ep.plan.${name}.phases`, value: phases.length, unit: "phases" });
    emitRows(emit, `ep.plan.${name}`, ranks);
  }
}

async function enterPhase(
  ranks: Ranks,
  {
    before,
    phase,
    signal,
  }: {
    readonly before: readonly number[];
    readonly phase: readonly number[];
    readonly signal: AbortSignal;
  },
): Promise<readonly number[]> {
  const killed = phase.filter((rank) => rank < 0).map((rank) => -rank);
  const stay = phase.filter((rank) => rank >= 0);
  const remove = before.filter((rank) => !stay.includes(rank) && !killed.includes(rank));
  const dying = members(ranks).filter(({ slot }) => slot !== null && killed.includes(slot));
  for (const rank of dying) rank.signal("SIGKILL");
  await ranks.until(() => dying.every(({ isAlive }) => !isAlive), "the deaths", signal);
  await idle(ranks, signal);
  if (remove.length > 0) await ranks.operate({ kind: "remove", remove }, signal);
  if (stay.length > members(ranks).length) await begin(ranks, stay.length, signal);
  for (let turn = 0; turn < 3; turn += 1) await goodSteps(ranks, members(ranks), signal);
  return stay;
}

/** Random joins, leaves, kills and stops, with every row of every good step checked. */
async function soak(emit: Emit, signal: AbortSignal): Promise<void> {
  await using ranks = await open({ timeoutMs: isFake ? 700 : 400 });
  await begin(ranks, 3, signal);
  const until = nowMs() + soakMs;
  const done = { join: 0, leave: 0, kill: 0, stop: 0 };
  while (nowMs() < until) {
    const act = choose(members(ranks).length);
    done[act] += 1;
    await perform(ranks, act, signal);
    await pause(randomInt(50, 400));
    await goodSteps(ranks, members(ranks).filter(isRunning), signal);
  }
  for (const [name, value] of Object.entries(done)) {
    emit({ name: `ep.soak.${name}s`, value, unit: "times" });
  }
  const evicted = ranks.all.flatMap(({ events }) =>
    events.filter(({ event }) => event.type === "ended" && !event.isLeave),
  );
  emit({ name: "ep.soak.evicted_and_back", value: evicted.length, unit: "times" });
  emit({ name: "ep.soak.seconds", value: soakMs / 1_000, unit: "s" });
  emit({ name: "ep.soak.epochs", value: ranks.group.keeper.group?.epoch ?? 0, unit: "epochs" });
  emitRows(emit, "ep.soak", ranks);
}

type Act = "join" | "leave" | "kill" | "stop";

function choose(count: number): Act {
  if (count < 3) return "join";
  const acts: readonly Act[] =
    count < slotCount ? ["join", "join", "kill", "stop"] : ["leave", "kill", "stop"];
  return acts[randomInt(acts.length)] ?? "join";
}

async function perform(ranks: Ranks, act: Act, signal: AbortSignal): Promise<void> {
  const present = members(ranks);
  const one = present[randomInt(present.length)];
  if (act === "join") return await begin(ranks, present.length + 1, signal);
  if (one === undefined) return;
  if (act === "leave") {
    await idle(ranks, signal);
    const { session } = one;
    await ranks.operate({ kind: "remove", remove: [one.slot ?? -1] }, signal);
    // One that was evicted in this very moment comes back instead.
    const isOver = () => !one.isAlive || one.session !== session;
    await ranks.until(isOver, "the leaver's end", signal);
    return;
  }
  if (act === "kill") {
    one.signal("SIGKILL");
    await ranks.until(() => !one.isAlive, "the death", signal);
    return;
  }
  // Longer than the kernels are patient in half of the cases: then it is evicted, told, and comes back.
  one.signal("SIGSTOP");
  await pause(randomInt(20, 1_200));
  one.signal("SIGCONT");
}

/** Ranks are started until there are so many, and let in. */
async function begin(ranks: Ranks, count: number, signal: AbortSignal): Promise<void> {
  await idle(ranks, signal);
  const waiting = ranks.alive.filter(({ session }) => session?.seat === null).length;
  const missing = count - members(ranks).length - waiting;
  if (missing > 0) ranks.start(missing);
  await ranks.operate({ kind: "scale", ranks: count }, signal);
  await goodSteps(ranks, members(ranks), signal);
}

/** The controller's own operations end before ours begin, so that none is refused. */
async function idle(ranks: Ranks, signal: AbortSignal): Promise<void> {
  await ranks.until(
    () => (ranks.group.keeper.group?.operation ?? null) === null,
    "no operation",
    signal,
  );
}

function members(ranks: Ranks): RankProcess[] {
  const active = ranks.group.keeper.group?.slots.filter(({ state }) => state === "ACTIVE") ?? [];
  return ranks.alive.filter(({ session }) =>
    active.some(
      ({ slot, incarnation }) =>
        session?.seat?.slot === slot && session.seat.incarnation === incarnation,
    ),
  );
}

function isRunning(rank: RankProcess): boolean {
  return rank.isAlive;
}

/** Each of them finishes a good step from now on, or stops being a member. */
async function goodSteps(
  ranks: Ranks,
  of: readonly RankProcess[],
  signal: AbortSignal,
): Promise<void> {
  const fromMs = nowMs();
  const isSo = () =>
    of.every((rank) => goodStepAtMs(rank, fromMs) !== null || !members(ranks).includes(rank));
  await ranks.until(isSo, "good steps", signal);
}

function emitRows(emit: Emit, name: string, ranks: Ranks): void {
  const all = summarise(ranks.all, { fromMs: 0, toMs: Number.POSITIVE_INFINITY });
  emit({ name: `${name}.rows_checked`, value: all.rows, unit: "rows" });
  emit({ name: `${name}.rows_wrong`, value: all.wrong, unit: "rows" });
  emit({ name: `${name}.iterations_to_do_again`, value: all.faulty, unit: "steps" });
  let worst = 0;
  for (const { steps } of ranks.all) for (const step of steps) worst = Math.max(worst, step.worst);
  emit({ name: `${name}.worst_row_error`, value: worst, unit: "relative L2" });
}

function phaseAt(rank: RankProcess, name: string): number {
  return rank.phases.find((phase) => phase.name === name)?.atMs ?? Number.NaN;
}

function medians(records: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const names = Object.keys(records[0] ?? {});
  return Object.fromEntries(
    names.map((name) => [name, median(records.map((record) => record[name] ?? Number.NaN))]),
  );
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
