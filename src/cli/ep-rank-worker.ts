// SPDX-License-Identifier: Apache-2.0
// The process of one rank of the demo and of bench/ep.ts: a mixture-of-experts layer in a loop, every
// output row checked on the GPU, membership from the process that started it (ep-link.ts).

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { agentMembership } from "../agent/ep-ports.ts";
import { expertBytes, MoeLayer } from "../elastic/moe/layer.ts";
import { EpGroup } from "../elastic/rank/group.ts";
import type { GroupEvent, StepOutcome } from "../elastic/rank/options.ts";
import type { JoinRequest, MembershipSession, NeededExpert } from "../elastic/session.ts";
import type { GroupConfig, Seat } from "../elastic/view.ts";
import { asRelightError, assert } from "../errors.ts";
import { CudaDriver } from "../gpu/cuda.ts";
import type { ContextHandle, GpuDriver } from "../gpu/driver.ts";
import { EpDevice } from "../gpu/ep-device.ts";
import { FakeDriver } from "../gpu/fake.ts";
import { fakeEpImage, fakeEpKernels } from "../gpu/fake-ep.ts";
import { fakeMoeImage, fakeMoeKernels } from "../gpu/fake-moe.ts";
import { kernelImage } from "../gpu/images.ts";
import { systemClock } from "../platform/clock.ts";
import { WindowSocket } from "../transport/window-exchange.ts";
import {
  type FromRank,
  LinkedSession,
  type RankSpec,
  type StepRecord,
  type ToRank,
} from "./ep-link.ts";

const waitMs = 60_000;
const batchCount = 2;
const tellMs = 50;
const limits = {
  seatMsMax: 600_000,
  connectMsMax: 10_000,
  stepMsMax: 60_000,
  progressMs: 5,
  beatMs: 200,
};

const stopping = new AbortController();
let linked: LinkedSession | null = null;
let session: MembershipSession | null = null;
let group: EpGroup | null = null;
let left = false;

process.on("message", (message: ToRank) => {
  switch (message.to) {
    case "start":
      phase("process");
      void run(message.spec).then(
        () => process.exit(0),
        (cause: unknown) => {
          const { code, message: text } = asRelightError(cause);
          send({ from: "failed", code, message: text });
          process.exit(1);
        },
      );
      return;
    case "command":
      linked?.hear(message.command, message.view);
      return;
    case "ended":
      linked?.end();
      return;
    case "leave":
      group?.leave();
      return;
    case "stop":
      stopping.abort();
      return;
  }
});
// Whoever started this rank is gone: so is the group's only coordinator.
process.on("disconnect", () => process.exit(0));

/** One life after the other: who was evicted comes back, who left comes back when it is asked to. */
async function run(spec: RankSpec): Promise<void> {
  await using driver = openDriver(spec);
  let held: Held | null = null;
  for (let life = 0; !stopping.signal.aborted; life += 1) {
    const memberId = `${spec.memberId}-${life}`;
    held = await live(driver, { ...spec, memberId }, held);
    if (held === null || (left && !spec.comesBack)) return;
    left = false;
  }
}

/** What a rank keeps from one life to the next as long as it sits in the same slot. */
interface Held {
  readonly slot: number;
  readonly device: EpDevice;
  readonly layer: MoeLayer;
}

async function live(driver: GpuDriver, spec: RankSpec, before: Held | null): Promise<Held | null> {
  using windows = new WindowSocket(join(spec.directory, `${spec.memberId}.sock`));
  const rank: { held: Held | null } = { held: null };
  await using opened = await EpGroup.join(
    {
      open: async (request, signal) => {
        session = await openMembership(spec, request, signal);
        return session;
      },
      config: configOf(spec),
      occupant: { memberId: spec.memberId, process: processName(), owner: null },
      wantedSlot: before?.slot ?? null,
      windows: {
        address: windows.address,
        offer: (seat, exportWindow) =>
          windows.offer(seat, exportWindow, () => layerOf(rank).exportExperts()),
        fetch: (address, seat, signal) => windows.fetch(address, seat, signal),
      },
      openDevice: async (seat) => {
        phase("seated");
        rank.held = await holdFor(driver, { spec, seat, before });
        phase("layer");
        return rank.held.device;
      },
      loadExperts: (experts, signal) =>
        loadExperts({ layer: layerOf(rank), windows, experts, signal }),
      onEvent: (event) => {
        left ||= event.type === "ended" && event.isLeave;
        send({ from: "event", atMs: nowMs(), event: toldEvent(event) });
      },
      limits,
      clock: systemClock,
    },
    stopping.signal,
  );
  group = opened;
  const { held } = rank;
  assert(held !== null, "joining opened the device");
  await loop({ group: opened, layer: held.layer, spec, driver, context: held.device.context });
  if (stopping.signal.aborted) return null;
  await opened.over;
  return held;
}

async function openMembership(
  { agentSocket }: RankSpec,
  request: JoinRequest,
  signal: AbortSignal,
): Promise<MembershipSession> {
  if (agentSocket !== null) return await agentMembership(agentSocket)(request, signal);
  linked = new LinkedSession(request, send);
  return linked;
}

async function holdFor(
  driver: GpuDriver,
  {
    spec,
    seat,
    before,
  }: { readonly spec: RankSpec; readonly seat: Seat; readonly before: Held | null },
): Promise<Held> {
  if (before?.slot === seat.slot) return before;
  await before?.device[Symbol.asyncDispose]();
  const device = await openDevice(driver, spec, seat);
  phase("kernels");
  return { slot: seat.slot, device, layer: await openLayer(driver, spec, device) };
}

function layerOf(rank: { readonly held: Held | null }): MoeLayer {
  assert(rank.held !== null, "the layer is opened with the device");
  return rank.held.layer;
}

async function loop({
  group,
  layer,
  spec,
  driver,
  context,
}: {
  readonly group: EpGroup;
  readonly layer: MoeLayer;
  readonly spec: RankSpec;
  readonly driver: GpuDriver;
  readonly context: ContextHandle;
}): Promise<void> {
  const { stepsPerRun: steps } = spec;
  let missing: readonly number[] = [];
  let told = systemClock.monotonicMs();
  let records: StepRecord[] = [];
  let before = await layer.verdict();
  const tell = async () => {
    const { freeBytes } = await driver.room(context);
    send({ from: "steps", steps: records, use: { gpuFreeBytes: freeBytes, ...processUse() } });
    records = [];
    told = systemClock.monotonicMs();
  };
  for (let batch = 0; !stopping.signal.aborted; batch += 1) {
    const began = systemClock.monotonicMs();
    const commands = Array.from({ length: steps }, () => layer.step(batch, missing)).flat();
    const outcome = await group.step(commands, { steps, signal: stopping.signal }).catch(endOf);
    if (outcome === null) break;
    const ended = systemClock.monotonicMs();
    const verdict = await layer.verdict();
    if (records.length === 0 && outcome.first === group.firstStep) phase("first step");
    const bad = verdict.bad - before.bad;
    // What is missing is known after the step that missed it first: its rows were held to too much.
    const isKnown = outcome.missingExperts.join() === missing.join();
    records.push({
      ...{ step: outcome.first, steps, endedAtMs: nowMs(), ms: ended - began },
      ...{ isGood: outcome.isGood, members: group.members, missing: outcome.missingExperts.length },
      rows: verdict.rows - before.rows,
      wrong: outcome.isGood && isKnown ? bad : 0,
      worst: outcome.isGood && isKnown ? verdict.worst : 0,
    });
    missing = outcome.missingExperts;
    before = verdict;
    if (!outcome.isGood || !isKnown) {
      await layer.forget();
      before = await layer.verdict();
    }
    if (ended - told > tellMs) await tell();
  }
  await tell();
}

/** The loop ends with the membership. */
function endOf(cause: unknown): StepOutcome | null {
  const error = asRelightError(cause);
  if (error.code === "cancelled" || error.code === "ep_evicted") return null;
  throw error;
}

async function loadExperts({
  layer,
  windows,
  experts,
  signal,
}: {
  readonly layer: MoeLayer;
  readonly windows: WindowSocket;
  readonly experts: readonly NeededExpert[];
  readonly signal: AbortSignal;
}): Promise<void> {
  const bySource = Map.groupBy(experts, ({ from }) => from[0]?.slot ?? null);
  for (const [slot, needed] of bySource) {
    signal.throwIfAborted();
    const source = slot === null ? null : occupantOf(slot);
    if (source === null) {
      for (const { expert, local } of needed) await layer.makeExpert(expert, local);
      continue;
    }
    using memory = await windows.fetch(source.address, source.seat, signal, "ep.experts");
    const copies = needed.flatMap(({ local, from: [copy] }) =>
      copy === undefined ? [] : [{ from: copy.local, to: local }],
    );
    await layer.copyExperts(memory.handle, copies);
  }
}

function occupantOf(slot: number): { readonly address: string; readonly seat: Seat } | null {
  const found = session?.view?.slots.find((one) => one.slot === slot);
  if (found?.occupant == null) return null;
  const { incarnation, occupant } = found;
  return { address: occupant.address, seat: { slot, incarnation } };
}

function openDriver({ backend, directory }: RankSpec): GpuDriver {
  if (backend === "cuda") return new CudaDriver();
  const kernels = { ...fakeEpKernels, ...fakeMoeKernels };
  return new FakeDriver({ directory, kernels, memoryBytes: 2 ** 32, deviceCount: 64 });
}

async function openDevice(driver: GpuDriver, spec: RankSpec, seat: Seat): Promise<EpDevice> {
  const { shape } = spec;
  const devices = await driver.devices();
  const ordinal = spec.ordinal % devices.length;
  const arch = devices[ordinal]?.arch ?? 0;
  return await EpDevice.open(driver, {
    ...{ ordinal, slot: seat.slot, blocks: spec.blocks, timeoutMs: spec.timeoutMs },
    image: spec.backend === "fake" ? fakeEpImage : kernelImage(arch),
    expertsMax: shape.experts,
    shape: {
      ranksMax: shape.slotCount,
      tokensMax: Math.ceil(shape.tokens / 8) * 8,
      hidden: shape.hidden,
      topk: shape.topk,
      localExpertsMax: shape.localExpertsMax,
      parities: 1,
      hasSelectRows: false,
    },
  });
}

async function openLayer(driver: GpuDriver, spec: RankSpec, device: EpDevice): Promise<MoeLayer> {
  const { shape } = spec;
  const arch = (await driver.devices())[0]?.arch ?? 0;
  const layer = await MoeLayer.open(driver, {
    ...{ context: device.context, stream: device.stream, exchange: device, number: spec.number },
    shape: {
      ...shape,
      ranksMax: shape.slotCount,
      rows: shape.slotCount * device.shape.tokensMax,
    },
    batchCount,
    image: spec.backend === "fake" ? fakeMoeImage : kernelImage(arch, "moe"),
    blasFile: spec.blasFile,
    wait: { signal: stopping.signal, deadlineMs: waitMs },
  });
  await layer.capture();
  return layer;
}

function configOf({ shape }: RankSpec): GroupConfig {
  return {
    group: shape.group,
    slotCount: shape.slotCount,
    expertCount: shape.experts,
    localExpertsMax: shape.localExpertsMax,
    redundantCount: shape.redundant,
    expertBytes: expertBytes(shape),
    shape: JSON.stringify(shape),
    admission: "operation",
  };
}

function processName() {
  const stat = readFileSync("/proc/self/stat", "utf8");
  // Field 22, counted behind the name, which may hold anything.
  const startTicks = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]);
  const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return { nodeId: "demo", bootId, pid: process.pid, startTicks };
}

function processUse() {
  return {
    descriptors: readdirSync("/proc/self/fd").length,
    residentBytes: process.memoryUsage.rss(),
  };
}

function toldEvent(event: GroupEvent): Extract<FromRank, { from: "event" }>["event"] {
  if (event.type !== "failed") return event;
  const { what, error } = event;
  return { type: "failed", what, code: error.code, message: error.message };
}

function phase(name: string): void {
  send({ from: "phase", name, atMs: nowMs() });
}

function send(message: FromRank): void {
  if (process.connected) process.send?.(message);
}

function nowMs(): number {
  return performance.timeOrigin + performance.now();
}
