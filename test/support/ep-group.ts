// SPDX-License-Identifier: Apache-2.0
// A small expert group for tests: its shape, a clock that stands still, and ranks that do at once what
// they are told and take steps when the test says so.

import { setImmediate as nextTurn } from "node:timers/promises";
import type { KeeperClock } from "../../src/elastic/keeper.ts";
import type { LocalGroup } from "../../src/elastic/local.ts";
import { type OperationRequest, operationLimits } from "../../src/elastic/operation.ts";
import type { Command, MembershipSession, Report } from "../../src/elastic/session.ts";
import type { GroupConfig, Occupant, Seat } from "../../src/elastic/view.ts";

export function groupConfig(change: Partial<GroupConfig> = {}): GroupConfig {
  return {
    group: "moe",
    slotCount: 8,
    expertCount: 16,
    localExpertsMax: 16,
    redundantCount: 0,
    expertBytes: 1_024,
    shape: "hidden=2048 topk=4",
    admission: "operation",
    ...change,
  };
}

export function occupant(name: string, change: Partial<Occupant> = {}): Occupant {
  const process = { nodeId: `node-${name}`, bootId: "boot", pid: 1, startTicks: 1 };
  return { memberId: name, process, address: `/run/${name}`, owner: null, ...change };
}

export function operation(
  operationId: string,
  change: Partial<OperationRequest> = {},
): OperationRequest {
  return {
    operationId,
    kind: "scale",
    ranks: 0,
    remove: [],
    expectedEpoch: null,
    timeoutMs: operationLimits.timeoutMsDefault,
    confirmsDeath: false,
    ...change,
  };
}

/** Moves by `pass` only, and then calls what is due. */
export class StillClock implements KeeperClock {
  #nowMs = 1_000_000;
  #timers: { atMs: number; act: () => void }[] = [];

  now(): number {
    return this.#nowMs;
  }

  after(ms: number, act: () => void): () => void {
    const timer = { atMs: this.#nowMs + ms, act };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((one) => one !== timer);
    };
  }

  async pass(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    for (;;) {
      await settled();
      const due = this.#timers.filter(({ atMs }) => atMs <= endMs);
      const next = due.reduce<(typeof due)[number] | undefined>(
        (first, one) => (first === undefined || one.atMs < first.atMs ? one : first),
        undefined,
      );
      if (next === undefined) break;
      this.#timers = this.#timers.filter((one) => one !== next);
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      next.act();
    }
    this.#nowMs = endMs;
    await settled();
  }
}

export async function settled(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await nextTurn();
}

/** A rank whose GPU answers at once. */
export class ObedientRank {
  readonly name: string;
  readonly session: MembershipSession;
  readonly commands: Command[] = [];
  /** Types of commands that it does not answer. */
  readonly deafTo = new Set<Command["type"]>();
  step = 0;
  gate = Number.POSITIVE_INFINITY;

  private constructor(name: string, session: MembershipSession) {
    this.name = name;
    this.session = session;
    void this.#obey();
  }

  static async join(
    group: LocalGroup,
    name: string,
    config: GroupConfig,
    wantedSlot: number | null = null,
  ): Promise<ObedientRank> {
    const session = await group.join({ config, occupant: occupant(name), wantedSlot });
    return new ObedientRank(name, session);
  }

  get seat(): Seat | null {
    return this.session.seat;
  }

  typesSeen(): string[] {
    return this.commands.map(({ type }) => type);
  }

  /** Takes steps up to `step`, or to the gate. */
  run(step: number): void {
    this.step = Math.max(this.step, Math.min(step, this.gate - 1));
    const at = this.step;
    this.session.report({ type: "progress", launchedStep: at, completedStep: at });
  }

  async #obey(): Promise<void> {
    for await (const command of this.session.commands) {
      this.commands.push(command);
      const answer = this.deafTo.has(command.type) ? null : this.#carryOut(command);
      if (answer !== null) this.session.report(answer);
    }
  }

  #carryOut(command: Command): Report | null {
    switch (command.type) {
      case "map":
        return { type: "mapped", seat: command.seat };
      case "unmap":
        return { type: "unmapped", seat: command.seat };
      case "prepare":
        return { type: "ready", number: command.number };
      case "arm":
        return this.#arm(command);
      case "commit":
        this.gate = Number.POSITIVE_INFINITY;
        this.run(command.atStep - 1);
        return null;
      case "disarm":
        this.gate = Number.POSITIVE_INFINITY;
        return null;
      case "mask":
        return { type: "masked", epoch: command.epoch, firstFaultyStep: null };
      case "release":
      case "evicted":
        return { type: "quiesced" };
      case "seat":
      case "replay":
      case "settled":
        return null;
    }
  }

  #arm({ number, atStep, on }: Extract<Command, { type: "arm" }>): Report {
    const isJoining = on.some(({ slot }) => slot === this.seat?.slot);
    if (isJoining) this.step = atStep - 1;
    if (this.step >= atStep) return { type: "refused", number, launchedStep: this.step };
    this.gate = atStep;
    return { type: "armed", number };
  }
}
