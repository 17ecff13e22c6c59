// SPDX-License-Identifier: Apache-2.0
// Membership across the channel between a process and the ranks that it started: the parent holds the
// sessions (elastic/local.ts), a rank sees its own. What travels is the contract of elastic/session.ts.

import { CommandQueue } from "../elastic/command-queue.ts";
import type { GroupEvent } from "../elastic/rank/options.ts";
import type { Command, JoinRequest, MembershipSession, Report } from "../elastic/session.ts";
import type { Seat, View } from "../elastic/view.ts";

/** What one rank is started with. */
export interface RankSpec {
  readonly backend: "cuda" | "fake";
  /** Of the agent through which it takes part; null: of whoever started it. */
  readonly agentSocket: string | null;
  readonly ordinal: number;
  /** Where sockets lie, and the fake GPU's memory. */
  readonly directory: string;
  readonly memberId: string;
  /** Ranks with other numbers have other inputs. */
  readonly number: number;
  readonly shape: RankShape;
  readonly blocks: number;
  readonly timeoutMs: number;
  readonly blasFile: string | null;
  /** A rank that has left asks for its seat again; one that was evicted does so in any case. */
  readonly comesBack: boolean;
  /** Launches of one run; more is faster and coarser. */
  readonly stepsPerRun: number;
}

export interface RankShape {
  readonly group: string;
  readonly slotCount: number;
  readonly hidden: number;
  readonly inner: number;
  readonly experts: number;
  readonly redundant: number;
  readonly localExpertsMax: number;
  readonly topk: number;
  readonly tokens: number;
}

export type ToRank =
  | { readonly to: "start"; readonly spec: RankSpec }
  | { readonly to: "command"; readonly command: Command; readonly view: View | null }
  | { readonly to: "ended" }
  | { readonly to: "leave" }
  | { readonly to: "stop" };

/** Times are Unix milliseconds with fractions, of one machine's clock. */
export type FromRank =
  | { readonly from: "join"; readonly request: JoinRequest }
  | { readonly from: "report"; readonly report: Report }
  | { readonly from: "event"; readonly atMs: number; readonly event: ToldEvent }
  | { readonly from: "phase"; readonly name: string; readonly atMs: number }
  | { readonly from: "steps"; readonly steps: readonly StepRecord[]; readonly use: RankUse }
  | { readonly from: "failed"; readonly code: string; readonly message: string };

/** An event without what does not travel. */
export type ToldEvent =
  | Exclude<GroupEvent, { type: "failed" }>
  | {
      readonly type: "failed";
      readonly what: string;
      readonly code: string;
      readonly message: string;
    };

export interface StepRecord {
  readonly step: number;
  readonly endedAtMs: number;
  readonly ms: number;
  readonly steps: number;
  readonly isGood: boolean;
  readonly members: number;
  readonly missing: number;
  /** Rows checked in it, and those that were wrong although the step was good. */
  readonly rows: number;
  readonly wrong: number;
  /** The worst row so far. */
  readonly worst: number;
}

/** What a rank holds of its machine. */
export interface RankUse {
  readonly gpuFreeBytes: number;
  readonly descriptors: number;
  readonly residentBytes: number;
}

/** The rank's end. */
export class LinkedSession implements MembershipSession {
  readonly #queue = new CommandQueue();
  readonly #send: (message: FromRank) => void;
  #view: View | null = null;
  #seat: Seat | null = null;

  constructor(request: JoinRequest, send: (message: FromRank) => void) {
    this.#send = send;
    send({ from: "join", request });
  }

  get commands(): AsyncIterable<Command> {
    return this.#queue;
  }

  get view(): View | null {
    return this.#view;
  }

  get seat(): Seat | null {
    return this.#seat;
  }

  hear(command: Command, view: View | null): void {
    this.#view = view;
    if (command.type === "seat") this.#seat = command.seat;
    this.#queue.push(command);
  }

  end(): void {
    this.#queue.end();
  }

  report(report: Report): void {
    this.#send({ from: "report", report });
  }

  async close(): Promise<void> {
    this.#queue.end();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
