// SPDX-License-Identifier: Apache-2.0
// One play: an expert group under traffic, operations and faults, all from one seed; then the faults
// stop, and it has to come back to what is asked of it.

import { abortOperation, beginOperation, findOperation } from "../../src/elastic/begin.ts";
import type { decide } from "../../src/elastic/controller.ts";
import type { Group } from "../../src/elastic/group.ts";
import type { Operation, OperationRequest } from "../../src/elastic/operation.ts";
import { lostExperts } from "../../src/elastic/placement.ts";
import type { GroupConfig } from "../../src/elastic/view.ts";
import { RelightError } from "../../src/errors.ts";
import { ElasticCheckers } from "./elastic-checkers.ts";
import { SimConnection, SimCoordinator, SimGroupStore } from "./elastic-coordinator.ts";
import { type Fabric, SimRank } from "./elastic-rank.ts";
import { Chance, Timeline } from "./timeline.ts";

export interface ElasticOptions {
  readonly seed: number;
  /** How long faults and operations go on, in virtual milliseconds. */
  readonly faultsMs?: number;
  /** The controller's rules, or broken ones that a checker has to notice. */
  readonly rule?: typeof decide;
}

export interface ElasticResult {
  readonly violations: readonly string[];
  readonly faults: readonly string[];
  readonly looks: Readonly<Record<string, number>>;
  readonly goodSteps: number;
  readonly faultySteps: number;
  readonly epochs: number;
  readonly ended: Readonly<Record<string, number>>;
  readonly virtualMs: number;
}

const faultKinds = [
  "kill",
  "freeze",
  "node",
  "coordinator",
  "cut",
  "lost",
  "late",
  "repeated",
  "store",
  "abort",
  "accuse",
  "leave",
] as const;
type FaultKind = (typeof faultKinds)[number];

const heartbeatMs = 40;
const slots = 6;
const operationMs = 1_500;

export async function playElastic(options: ElasticOptions): Promise<ElasticResult> {
  const play = new Play(options);
  return play.run();
}

class Play {
  readonly #faultsMs: number;
  readonly #timeline = new Timeline();
  readonly #chance: Chance;
  readonly #ranks = new Map<string, SimRank>();
  readonly #connections = new Map<string, SimConnection>();
  readonly #checkers: ElasticCheckers;
  readonly #store: SimGroupStore;
  readonly #coordinator: SimCoordinator;
  readonly #fabric: Fabric;
  readonly #picked: ReadonlySet<FaultKind>;
  readonly #mail = { lost: 0, repeated: 0, lateMsMax: 0.3 };
  readonly #cut = new Set<string>();
  readonly #config: GroupConfig;
  #names = 0;
  #operations = 0;
  #goodSteps = 0;
  #faultySteps = 0;

  constructor({ seed, faultsMs = 2_500, rule }: ElasticOptions) {
    this.#faultsMs = faultsMs;
    this.#chance = new Chance(seed);
    this.#checkers = new ElasticCheckers(this.#ranks);
    this.#store = new SimGroupStore(this.#timeline, this.#chance, (group) =>
      this.#checkers.onRecord(group),
    );
    const parts = { timeline: this.#timeline, chance: this.#chance, store: this.#store };
    this.#coordinator = new SimCoordinator({ ...parts, name: "moe" }, rule);
    this.#picked = new Set(faultKinds.filter(() => this.#chance.is(0.35)));
    this.#config = {
      group: "moe",
      slotCount: slots,
      expertCount: 12,
      localExpertsMax: this.#chance.is(0.5) ? 24 : 8,
      redundantCount: this.#chance.pick([0, 0, 4, 12]) ?? 0,
      expertBytes: 1,
      shape: "",
      admission: this.#chance.is(0.2) ? "automatic" : "operation",
    };
    this.#fabric = {
      timeline: this.#timeline,
      chance: this.#chance,
      ranks: this.#ranks,
      isBusy: true,
      onStep: (step, isGood) => {
        if (isGood) this.#goodSteps++;
        else this.#faultySteps++;
        if (isGood) this.#checkers.onGoodStep(step);
      },
    };
  }

  async run(): Promise<ElasticResult> {
    void this.#coordinator.start();
    await this.#turn(5);
    for (let count = 0; count < 3; count++) this.#addRank();
    this.#every(heartbeatMs, () => this.#look());
    await this.#turn(20);
    this.#begin({ kind: "scale", ranks: 3 });
    await this.#turn(400);
    if (this.#picked.has("lost")) this.#mail.lost = this.#chance.between(0, 0.3);
    if (this.#picked.has("repeated")) this.#mail.repeated = 0.3;
    if (this.#picked.has("late")) this.#mail.lateMsMax = this.#chance.between(1, 80);
    if (this.#picked.has("store")) {
      this.#store.mood.failing = this.#chance.between(0, 0.3);
      this.#store.mood.slowMs = this.#chance.between(0, 40);
    }
    const endMs = this.#timeline.nowMs + this.#faultsMs;
    while (this.#timeline.nowMs < endMs) {
      this.#happen();
      await this.#turn(this.#chance.between(5, 300));
    }
    this.#heal();
    await this.#converge();
    const group = this.#store.stored?.group;
    return {
      violations: this.#checkers.violations,
      faults: [...this.#picked],
      looks: this.#checkers.looks,
      goodSteps: this.#goodSteps,
      faultySteps: this.#faultySteps,
      epochs: group?.epoch ?? 0,
      ended: countBy(group?.finished ?? []),
      virtualMs: this.#timeline.nowMs,
    };
  }

  /** One thing that an operator, a launcher or fate may do. */
  #happen(): void {
    const usual = ["scale", "scale", "remove", "recover", "join", "join", "idle"] as const;
    const what = this.#chance.pick([...usual, ...this.#picked]);
    if (what !== undefined) this.#events[what]?.();
  }

  readonly #events: Partial<
    Record<FaultKind | "scale" | "remove" | "recover" | "join" | "idle", () => void>
  > = {
    scale: () => this.#begin({ kind: "scale", ranks: 1 + this.#chance.below(slots) }),
    remove: () => this.#begin({ kind: "remove", remove: [this.#chance.below(slots)] }),
    recover: () => this.#begin({ kind: "recover" }),
    join: () => {
      if (this.#ranks.size < 60) this.#addRank();
    },
    idle: () => {
      this.#fabric.isBusy = !this.#fabric.isBusy;
    },
    kill: () => this.#someRank()?.kill(),
    freeze: () => this.#freeze(this.#someRank()),
    node: () => this.#loseNode(this.#someRank()),
    coordinator: () => this.#restart(),
    cut: () => this.#cutOff(this.#someRank()),
    abort: () => this.#abort(),
    accuse: () => this.#accuse(this.#someRank()),
    leave: () => this.#someRank()?.leave(),
  };

  #someRank(): SimRank | undefined {
    return this.#chance.pick([...this.#ranks.values()].filter(({ isAlive }) => isAlive));
  }

  #addRank(nodeId = `node-${this.#names % 3}`): SimRank {
    const name = `rank-${this.#names++}`;
    const rank = new SimRank(name, nodeId, this.#fabric, () => this.#connections.get(name)?.tell());
    this.#ranks.set(name, rank);
    this.#connect(rank);
    return rank;
  }

  #connect(rank: SimRank): void {
    const { name, nodeId } = rank;
    if (!rank.hasAgent || this.#connections.get(name)?.isCurrent === true) return;
    if (rank.member.isOver && rank.member.status.isQuiesced) return;
    const world = this;
    const connection = SimConnection.open(this.#coordinator, {
      config: this.#config,
      occupant: {
        memberId: name,
        process: { nodeId, bootId: "boot", pid: this.#names, startTicks: 1 },
        address: `/run/${name}`,
        owner: null,
      },
      mail: {
        get lost() {
          return world.#mail.lost;
        },
        get repeated() {
          return world.#mail.repeated;
        },
        get lateMsMax() {
          return world.#mail.lateMsMax;
        },
        get isCut() {
          return world.#cut.has(name);
        },
      },
      status: () => rank.member.status,
      hear: (view) => rank.hear(view),
      refuse: () => rank.refuse(),
    });
    if (connection !== null) this.#connections.set(name, connection);
  }

  /** A heartbeat of every agent, and a look around. */
  #look(): void {
    for (const rank of this.#ranks.values()) {
      if (!rank.hasAgent) continue;
      this.#connect(rank);
      this.#testify(rank);
      this.#connections.get(rank.name)?.tell();
    }
    const { keeper } = this.#coordinator;
    this.#checkers.onLook(keeper?.group == null ? null : keeper.effective());
  }

  /** An agent sees which processes of its node are gone, also of an agent before it. */
  #testify(rank: SimRank): void {
    const view = rank.member.view;
    for (const slot of view?.slots ?? []) {
      if (slot.occupant?.process.nodeId !== rank.nodeId) continue;
      const other = this.#ranks.get(slot.occupant.memberId);
      if (other?.isAlive === false)
        rank.testify({ slot: slot.slot, incarnation: slot.incarnation });
    }
  }

  #begin(what: Partial<OperationRequest>): void {
    const operationId = `op-${this.#operations++}`;
    const request: OperationRequest = {
      operationId,
      kind: "scale",
      ranks: 0,
      remove: [],
      expectedEpoch: null,
      timeoutMs: operationMs,
      confirmsDeath: false,
      ...what,
    };
    const send = () => {
      const { keeper } = this.#coordinator;
      keeper
        ?.request((group) =>
          beginOperation(group, request, {
            by: "operator",
            nowMs: Math.floor(this.#timeline.wallMs),
          }),
        )
        .catch(ignoreRefusal);
    };
    send();
    // A caller that lost its answer says the same again.
    if (this.#chance.is(0.3)) this.#timeline.after(this.#chance.between(1, 50), send);
  }

  #abort(): void {
    const { keeper } = this.#coordinator;
    const open = keeper?.group?.operation;
    if (open == null) return;
    const nowMs = Math.floor(this.#timeline.wallMs);
    keeper
      ?.request((group) => abortOperation(group, open.request.operationId, nowMs))
      .catch(ignoreRefusal);
  }

  #freeze(rank: SimRank | undefined): void {
    if (rank === undefined) return;
    rank.isFrozen = true;
    this.#timeline.after(this.#chance.between(10, 1_000), () => rank.thaw());
  }

  /** The process and its agent at once: nobody is left to say that it ended. */
  #loseNode(rank: SimRank | undefined): void {
    if (rank === undefined) return;
    rank.hasAgent = false;
    rank.kill();
    this.#connections.get(rank.name)?.close();
    this.#timeline.after(this.#chance.between(50, 800), () => this.#addRank(rank.nodeId));
  }

  #restart(): void {
    this.#coordinator.kill();
    this.#timeline.after(this.#chance.between(1, 300), () => void this.#coordinator.start());
  }

  #cutOff(rank: SimRank | undefined): void {
    if (rank === undefined) return;
    this.#cut.add(rank.name);
    this.#timeline.after(this.#chance.between(10, 1_200), () => this.#cut.delete(rank.name));
  }

  /** A kernel of one gives up a peer that has done nothing wrong. */
  #accuse(rank: SimRank | undefined): void {
    if (rank === undefined) return;
    const peer = this.#chance.pick(rank.membersAt(rank.launched + 1));
    const { seat } = rank.member.status;
    if (peer === undefined || seat === null || peer === `${seat.slot}/${seat.incarnation}`) return;
    rank.suspect(peer, rank.launched);
  }

  #heal(): void {
    this.#mail.lost = 0;
    this.#mail.repeated = 0;
    this.#mail.lateMsMax = 0.3;
    this.#store.mood.failing = 0;
    this.#store.mood.slowMs = 1;
    this.#cut.clear();
    this.#fabric.isBusy = true;
    for (const rank of this.#ranks.values()) if (rank.isFrozen) rank.thaw();
  }

  /** Everything ends, and four ranks can be had. */
  async #converge(): Promise<void> {
    if (this.#coordinator.keeper === null) void this.#coordinator.start();
    await this.#turn(3 * operationMs + 2_000);
    const open = this.#group().operation;
    if (open !== null && open.by === "operator")
      this.#checkers.violate(`${open.request.operationId} does not end: ${open.phase}`);
    for (const rank of this.#ranks.values()) {
      // Those that were let go start anew, as a launcher would have it.
      if (rank.isAlive && rank.member.isOver) rank.kill();
    }
    for (let node = 0; node < 3; node++) this.#addRank(`node-${node}`);
    for (let count = 0; count < 2; count++) this.#addRank();
    await this.#turn(100);
    for (let attempt = 0; attempt < 20 && !this.#isKnown("last"); attempt++) {
      // What the group began by itself ends first.
      this.#begin({ kind: "scale", ranks: 4, operationId: "last" });
      await this.#turn(100);
    }
    await this.#turn(2_000);
    this.#checkEnd();
    const before = this.#goodSteps;
    const faulty = this.#faultySteps;
    await this.#turn(200);
    if (this.#goodSteps - before < 100) this.#checkers.violate("the group takes no good steps");
    if (this.#faultySteps > faulty) this.#checkers.violate("a step fails though nothing is wrong");
  }

  #isKnown(operationId: string): boolean {
    return findOperation(this.#group(), operationId) !== null;
  }

  #checkEnd(): void {
    const group = this.#group();
    const last = group.finished.find(({ request }) => request.operationId === "last");
    const what = JSON.stringify({ last: last ?? group.operation, slots: group.slots });
    if (last?.phase !== "done") this.#checkers.violate(`the last scale is not done: ${what}`);
    const { keeper } = this.#coordinator;
    const ranks = keeper?.effective().ranks.length ?? 0;
    if (ranks !== 4) this.#checkers.violate(`${ranks} ranks after a scale to 4: ${what}`);
    if (lostExperts(group.placement).length > 0) this.#checkers.violate("experts are lost");
    for (const operation of group.finished) this.#checkOperation(operation);
    for (const slot of group.slots) {
      if (slot.state === "DEAD") this.#checkers.violate(`slot ${slot.slot} stays DEAD: ${what}`);
    }
  }

  #checkOperation({ request, phase, phases, error }: Operation): void {
    this.#checkers.count("operations");
    const names = phases.map((one) => one.phase);
    if (phase === "done" && names.includes("aborting"))
      this.#checkers.violate(`${request.operationId} was taken back and done`);
    if (names.includes("committed") && phase === "aborted")
      this.#checkers.violate(`${request.operationId} was committed and taken back`);
    if (phase === "aborted" && error === null)
      this.#checkers.violate(`${request.operationId} was aborted and nobody says why`);
  }

  #group(): Group {
    const group = this.#store.stored?.group;
    if (group === undefined) throw new Error("nothing was ever stored");
    return group;
  }

  #every(ms: number, act: () => void): void {
    this.#timeline.after(ms, () => {
      act();
      this.#every(ms, act);
    });
  }

  async #turn(ms: number): Promise<void> {
    await this.#timeline.run(this.#timeline.nowMs + ms, () => false);
  }
}

function ignoreRefusal(error: unknown): void {
  if (!(error instanceof RelightError) || error.code === "internal") throw error;
}

function countBy(operations: readonly Operation[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { phase, by } of operations) {
    const key = `${by}:${phase}`;
    counts[key] = (counts[key] ?? 0) + 1;
  }
  return counts;
}
