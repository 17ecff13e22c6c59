// SPDX-License-Identifier: Apache-2.0
// Membership in one process: the same controller and the same rank protocol as across processes, with
// a map for a store and calls for a wire. For a demo, for tests, and for ranks that are threads.

import { RelightError } from "../errors.ts";
import { abortOperation, beginOperation } from "./begin.ts";
import { CommandQueue } from "./command-queue.ts";
import type { ControllerLimits, Group } from "./group.ts";
import { GroupKeeper, type GroupStore, type KeeperClock, type StoredGroup } from "./keeper.ts";
import { hearReport, hearView, type Member, newMember } from "./member.ts";
import type { Operation, OperationRequest } from "./operation.ts";
import type { Command, JoinRequest, MembershipSession, Report } from "./session.ts";
import type { Speaker } from "./status.ts";
import type { Seat, View } from "./view.ts";

/** Records in memory; compare-and-set as in any other store. */
export class MemoryGroupStore implements GroupStore {
  readonly #records = new Map<string, StoredGroup>();

  async load(name: string): Promise<StoredGroup | null> {
    return this.#records.get(name) ?? null;
  }

  async save(group: Group, replaces: number | null): Promise<number | null> {
    const { group: name } = group.config;
    const before = this.#records.get(name);
    if ((before?.revision ?? null) !== replaces) return null;
    const revision = (before?.revision ?? 0) + 1;
    this.#records.set(name, { group, revision });
    return revision;
  }
}

export interface LocalGroupOptions {
  readonly name: string;
  readonly clock: KeeperClock;
  readonly limits?: Partial<ControllerLimits>;
}

/** One group whose coordinator is this object. */
export class LocalGroup implements AsyncDisposable {
  readonly keeper: GroupKeeper;
  readonly #clock: KeeperClock;

  constructor({ name, clock, limits = {} }: LocalGroupOptions) {
    this.#clock = clock;
    this.keeper = new GroupKeeper({ name, clock, limits, store: new MemoryGroupStore() }, null);
  }

  /** @throws RelightError `ep_config_differs`, `request_invalid`. */
  async join(request: JoinRequest): Promise<LocalSession> {
    const session = new LocalSession(this.keeper, request);
    await session.start();
    return session;
  }

  /** @throws as `beginOperation`; `not_found` before the first rank has come. */
  async begin(request: OperationRequest): Promise<Operation | null> {
    const by = { by: "operator", nowMs: this.#clock.now() } as const;
    const group = await this.keeper.request((before) => beginOperation(before, request, by));
    return group.operation;
  }

  async abort(operationId: string): Promise<void> {
    await this.keeper.request((group) => abortOperation(group, operationId, this.#clock.now()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.keeper.stop();
  }
}

/** A rank's seat, held by whoever looks after its process. */
export class LocalSession implements MembershipSession {
  readonly #keeper: GroupKeeper;
  readonly #request: JoinRequest;
  readonly #queue = new CommandQueue();
  readonly #listener = (view: View): void => this.#hear(view);
  #member: Member;
  #isClosed = false;

  constructor(keeper: GroupKeeper, request: JoinRequest) {
    this.#keeper = keeper;
    this.#request = request;
    this.#member = newMember(request.occupant.memberId);
  }

  get commands(): AsyncIterable<Command> {
    return this.#queue;
  }

  get view(): View | null {
    return this.seat === null ? null : this.#member.view;
  }

  get seat(): Seat | null {
    return this.#member.status.seat;
  }

  async start(): Promise<void> {
    const { config, occupant, wantedSlot } = this.#request;
    const candidate = { occupant, wantedSlot };
    const from = this.#speaker();
    const { status } = this.#member;
    await this.#keeper.hello({ config, from, candidate, status }, this.#listener);
  }

  report(report: Report): void {
    if (this.#isClosed) throw new RelightError("cancelled", "Cannot report: the session is closed");
    if (report.type === "load") this.#keeper.hearLoad(this.#member.status.memberId, report.experts);
    this.#member = hearReport(this.#member, report);
    this.#tell();
  }

  /** The process no longer listens: its peers mask it at once, its slot waits until `close`. */
  hangUp(): void {
    const { status } = this.#member;
    if (this.#isClosed || status.seat === null || status.isQuiesced) return;
    const sequence = status.sequence + 1;
    this.#member = { ...this.#member, status: { ...status, sequence, isHungUp: true } };
    this.#tell();
  }

  /** The process is known to be gone: it is this one that says so. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#queue.end();
    const { seat, memberId } = this.#member.status;
    if (seat !== null && !this.#member.status.isQuiesced) {
      const { status } = this.#member;
      const sequence = status.sequence + 1;
      this.#member = { ...this.#member, status: { ...status, sequence, gone: [seat] } };
      this.#tell();
    }
    this.#keeper.farewell(memberId, this.#listener);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #hear(view: View): void {
    if (this.#isClosed) return;
    const [member, commands] = hearView(this.#member, view);
    const isNew = member !== this.#member;
    this.#member = member;
    for (const command of commands) this.#queue.push(command);
    if (member.isOver) this.#queue.end();
    if (isNew) this.#tell();
  }

  #tell(): void {
    this.#keeper.hear(this.#member.status, this.#speaker());
  }

  #speaker(): Speaker {
    const { process, owner } = this.#request.occupant;
    return { nodeId: process.nodeId, owner };
  }
}
