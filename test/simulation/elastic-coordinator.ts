// SPDX-License-Identifier: Apache-2.0
// The coordinator's side of a simulated expert group: production's keeper over a store that may be slow,
// fail, or fail after it has written; killed and started again; and agents' connections to it.

import { decide } from "../../src/elastic/controller.ts";
import type { ControllerLimits, Group } from "../../src/elastic/group.ts";
import { GroupKeeper, type GroupStore, type StoredGroup } from "../../src/elastic/keeper.ts";
import type { Status } from "../../src/elastic/status.ts";
import type { GroupConfig, Occupant, View } from "../../src/elastic/view.ts";
import { RelightError } from "../../src/errors.ts";
import type { Chance, Timeline } from "./timeline.ts";

export const simLimits: ControllerLimits = {
  leaseMs: 1_500,
  graceMs: 30,
  flipMs: 300,
  leadMs: 10,
};

export interface StoreMood {
  failing: number;
  slowMs: number;
}

/** Outlives the coordinator. */
export class SimGroupStore implements GroupStore {
  readonly mood: StoreMood = { failing: 0, slowMs: 1 };
  stored: StoredGroup | null = null;
  readonly #timeline: Timeline;
  readonly #chance: Chance;
  readonly #onSaved: (group: Group) => void;

  constructor(timeline: Timeline, chance: Chance, onSaved: (group: Group) => void) {
    this.#timeline = timeline;
    this.#chance = chance;
    this.#onSaved = onSaved;
  }

  async load(): Promise<StoredGroup | null> {
    await this.#wait();
    return this.stored;
  }

  async save(group: Group, replaces: number | null): Promise<number | null> {
    await this.#wait();
    if ((this.stored?.revision ?? null) !== replaces) return null;
    const revision = (replaces ?? 0) + 1;
    this.stored = { group, revision };
    this.#onSaved(group);
    await this.#wait();
    return revision;
  }

  async #wait(): Promise<void> {
    const ms = this.#chance.between(0, this.mood.slowMs);
    await new Promise<void>((resolve) => this.#timeline.after(ms, resolve));
    if (this.#chance.is(this.mood.failing))
      throw new RelightError("store_unavailable", "Cannot use the store: it does not answer");
  }
}

/** What happens to messages of one agent. */
export interface Mail {
  lost: number;
  repeated: number;
  lateMsMax: number;
  isCut: boolean;
}

export interface Caller {
  readonly config: GroupConfig;
  readonly occupant: Occupant;
  readonly mail: Mail;
  status(): Status;
  hear(view: View): void;
  refuse(): void;
}

type Decide = typeof decide;

export class SimCoordinator {
  keeper: GroupKeeper | null = null;
  readonly store: SimGroupStore;
  readonly #timeline: Timeline;
  readonly #chance: Chance;
  readonly #name: string;
  readonly #decide: Decide;

  constructor(
    parts: { timeline: Timeline; chance: Chance; store: SimGroupStore; name: string },
    rule: Decide = decide,
  ) {
    this.#timeline = parts.timeline;
    this.#chance = parts.chance;
    this.store = parts.store;
    this.#name = parts.name;
    this.#decide = rule;
  }

  async start(): Promise<void> {
    const stored = await this.store.load().catch(() => undefined);
    if (stored === undefined) {
      this.#timeline.after(100, () => void this.start());
      return;
    }
    const clock = {
      now: () => Math.floor(this.#timeline.wallMs),
      after: (ms: number, act: () => void) => {
        const timer = this.#timeline.after(ms, () => {
          if (this.keeper === keeper) act();
        });
        return () => timer.cancel();
      },
    };
    const keeper: GroupKeeper = new GroupKeeper(
      { name: this.#name, store: this.store, clock, limits: simLimits, decide: this.#decide },
      stored,
    );
    this.keeper = keeper;
  }

  /** Everything in memory is gone; a write on its way may still land. */
  kill(): void {
    this.keeper = null;
  }

  /** Takes a message over the wire, as often and as late as the mail says. */
  deliver(mail: Mail, act: () => void): void {
    if (mail.isCut || this.#chance.is(mail.lost)) return;
    const copies = this.#chance.is(mail.repeated) ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      this.#timeline.after(0.2 + this.#chance.between(0, mail.lateMsMax), act);
    }
  }
}

/** One stream of an agent for one rank: hello, then words; views back. */
export class SimConnection {
  isOpen = true;
  readonly #coordinator: SimCoordinator;
  readonly #keeper: GroupKeeper;
  readonly #caller: Caller;
  readonly #listener = (view: View): void => {
    this.#coordinator.deliver(this.#caller.mail, () => this.#caller.hear(view));
  };

  private constructor(coordinator: SimCoordinator, keeper: GroupKeeper, caller: Caller) {
    this.#coordinator = coordinator;
    this.#keeper = keeper;
    this.#caller = caller;
  }

  /** Null while no coordinator listens. */
  static open(coordinator: SimCoordinator, caller: Caller): SimConnection | null {
    const { keeper } = coordinator;
    if (keeper === null || caller.mail.isCut) return null;
    const connection = new SimConnection(coordinator, keeper, caller);
    const { config, occupant } = caller;
    const status = caller.status();
    const from = { nodeId: occupant.process.nodeId, owner: null };
    const candidate = status.seat === null ? { occupant, wantedSlot: null } : null;
    keeper.hello({ config, status, from, candidate }, connection.#listener).catch((error) => {
      connection.isOpen = false;
      if (error instanceof RelightError && error.code === "ep_evicted") caller.refuse();
    });
    return connection;
  }

  get isCurrent(): boolean {
    return this.isOpen && this.#coordinator.keeper === this.#keeper;
  }

  tell(): void {
    const status = this.#caller.status();
    const from = { nodeId: this.#caller.occupant.process.nodeId, owner: null };
    this.#coordinator.deliver(this.#caller.mail, () => {
      if (!this.isCurrent) return;
      this.#keeper.hear(status, from);
      const view = this.#keeper.group;
      // What was lost on the way is said again to whoever is behind.
      if (view !== null && status.generation < view.generation) this.#listener(view);
    });
  }

  close(): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.#keeper.farewell(this.#caller.status().memberId, this.#listener);
  }
}
