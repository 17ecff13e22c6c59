// SPDX-License-Identifier: Apache-2.0
// One group's shell: takes words and requests in turn, lets the controller decide, writes the record
// with compare-and-set, and only then tells the members. Used by the coordinator, in one process by
// local.ts, and by the simulator.

import { asRelightError, RelightError } from "../errors.ts";
import { decide, type Effective, effectiveOf, wakeAtMs } from "./controller.ts";
import {
  type Candidate,
  type ControllerLimits,
  checkSameConfig,
  controllerLimits,
  type Group,
  type Known,
  newGroup,
  viewOf,
} from "./group.ts";
import { type Heard, hearStatus, type Speaker, type Status } from "./status.ts";
import type { GroupConfig, View } from "./view.ts";

/** Where records live. One keeper writes a group at a time; a second one is noticed by its revision. */
export interface GroupStore {
  /** @throws RelightError `store_unavailable`, `store_corrupt`. */
  load(name: string, signal: AbortSignal): Promise<StoredGroup | null>;
  /** The new revision once it is durable; null when the record is not at `replaces`. */
  save(group: Group, replaces: number | null, signal: AbortSignal): Promise<number | null>;
}

export interface StoredGroup {
  readonly group: Group;
  readonly revision: number;
}

export interface KeeperClock {
  /** Unix milliseconds that never jump. */
  now(): number;
  /** Calls once after `ms`; the answer takes it back. */
  after(ms: number, act: () => void): () => void;
}

export interface KeeperOptions {
  readonly name: string;
  readonly store: GroupStore;
  readonly clock: KeeperClock;
  readonly limits?: Partial<ControllerLimits>;
  /** Told of each record once it is durable. */
  readonly onChange?: (group: Group, before: Group | null) => void;
  readonly onFailure?: (error: RelightError) => void;
  /** The rules; the simulator breaks one of them to see that it is noticed. */
  readonly decide?: typeof decide;
}

interface Request {
  readonly change: (group: Group) => Group;
  readonly resolve: (group: Group) => void;
  readonly reject: (error: RelightError) => void;
}

type Listener = (view: View) => void;

const retryMs = 250;

export class GroupKeeper {
  readonly name: string;
  readonly #options: KeeperOptions;
  readonly #limits: ControllerLimits;
  readonly #heard = new Map<string, Heard>();
  readonly #candidates = new Map<string, Candidate>();
  readonly #listeners = new Map<string, Listener>();
  readonly #loads = new Map<string, readonly number[]>();
  readonly #requests: Request[] = [];
  readonly #sinceMs: number;
  readonly #stopping = new AbortController();
  #stored: StoredGroup | null;
  #isSure = true;
  #running: Promise<void> | null = null;
  #isDue = false;
  #cancelWake: () => void = () => {};

  /** @param stored what the store holds of it; null for a group that nobody has made yet. */
  constructor(options: KeeperOptions, stored: StoredGroup | null) {
    this.name = options.name;
    this.#options = options;
    this.#limits = { ...controllerLimits, ...options.limits };
    this.#stored = stored;
    this.#sinceMs = options.clock.now();
    // What was under way when the last coordinator stopped has deadlines, also if nobody ever speaks.
    if (stored !== null) this.look();
  }

  /** As it is durable; null before anybody made it. */
  get group(): Group | null {
    return this.#stored?.group ?? null;
  }

  /** @throws RelightError `not_found` before anybody made it. */
  effective(): Effective {
    return effectiveOf(this.#mustGroup(), this.#known());
  }

  heard(memberId: string): Heard | undefined {
    return this.#heard.get(memberId);
  }

  get memberCount(): number {
    return this.#heard.size;
  }

  /**
   * A member takes part: views go to `listener` from now on, the present one at once.
   * @param candidate null for one that claims to have a seat already.
   * @throws RelightError `ep_config_differs`, `request_invalid`, `ep_evicted`.
   */
  async hello(
    hello: {
      readonly config: GroupConfig;
      readonly status: Status;
      readonly from: Speaker;
      readonly candidate: Omit<Candidate, "sinceMs"> | null;
    },
    listener: Listener,
  ): Promise<void> {
    const { config, status, from, candidate } = hello;
    const { memberId } = status;
    if (this.#stored === null) await this.#make(config);
    const group = this.#mustGroup();
    checkSameConfig(group, config);
    const isSeated = group.slots.some(({ occupant }) => occupant?.memberId === memberId);
    if (!isSeated && status.seat !== null) throw evicted(group, status);
    this.#listeners.set(memberId, listener);
    if (!isSeated && candidate !== null && !this.#candidates.has(memberId))
      this.#candidates.set(memberId, { ...candidate, sinceMs: this.#options.clock.now() });
    this.hear(status, from);
    listener(viewOf(this.#mustGroup()));
  }

  /** A word of a member. One that is older than what is known changes nothing. */
  hear(status: Status, from: Speaker): void {
    const { memberId } = status;
    const before = this.#heard.get(memberId);
    const nowMs = this.#options.clock.now();
    this.#heard.set(memberId, hearStatus(before, status, { from, nowMs }));
    this.look();
  }

  /** Its connection is gone; it may come back. One that has no seat is forgotten. */
  farewell(memberId: string, listener: Listener): void {
    if (this.#listeners.get(memberId) !== listener) return;
    this.#listeners.delete(memberId);
    this.#candidates.delete(memberId);
    this.#prune();
    this.look();
  }

  hearLoad(memberId: string, load: readonly number[]): void {
    this.#loads.set(memberId, load);
  }

  /**
   * Changes the record by a request, and resolves once that is durable.
   * @throws what `change` throws; `store_unavailable`, after which it may or may not have happened.
   */
  request(change: (group: Group) => Group): Promise<Group> {
    const { promise, resolve, reject } = Promise.withResolvers<Group>();
    this.#requests.push({ change, resolve, reject });
    this.look();
    return promise;
  }

  /** Decides, now or right after what is being decided. */
  look(): void {
    this.#isDue = true;
    if (this.#running !== null || this.#stopping.signal.aborted) return;
    this.#running = this.#decideAll().finally(() => {
      this.#running = null;
      if (this.#isDue) this.look();
    });
  }

  async stop(): Promise<void> {
    this.#stopping.abort(new RelightError("cancelled", "The coordinator stops"));
    this.#cancelWake();
    await this.#running;
    for (const { reject } of this.#requests.splice(0))
      reject(asRelightError(this.#stopping.signal.reason));
  }

  async #make(config: GroupConfig): Promise<void> {
    const made = newGroup(config);
    const first: Group = { ...made, generation: 1 };
    const { signal } = this.#stopping;
    const revision = await this.#options.store.save(first, null, signal);
    if (revision === null) await this.#reload();
    else if (this.#stored === null) this.#accept({ group: first, revision });
  }

  async #decideAll(): Promise<void> {
    while (this.#isDue && !this.#stopping.signal.aborted) {
      this.#isDue = false;
      const requests = this.#requests.splice(0);
      try {
        if (!this.#isSure) await this.#reload();
        await this.#decideOnce(requests);
      } catch (thrown) {
        const error = asRelightError(thrown);
        this.#isSure = false;
        for (const { reject } of requests) reject(error);
        this.#options.onFailure?.(error);
        this.#wakeAfter(retryMs);
        return;
      }
    }
  }

  async #decideOnce(requests: readonly Request[]): Promise<void> {
    const stored = this.#stored;
    if (stored === null) {
      for (const { reject } of requests) reject(noGroup(this.name));
      return;
    }
    const now = { nowMs: this.#options.clock.now(), limits: this.#limits };
    const accepted: Request[] = [];
    const rule = this.#options.decide ?? decide;
    const next = rule(stored.group, this.#known(), now, (group) =>
      requests.reduce((before, request) => {
        try {
          const after = request.change(before);
          accepted.push(request);
          return after;
        } catch (error) {
          request.reject(asRelightError(error));
          return before;
        }
      }, group),
    );
    if (next !== stored.group && !(await this.#write(next, stored.revision))) {
      // Somebody else wrote: what was decided here was decided about the past.
      this.#isSure = false;
      this.#requests.unshift(...accepted);
      this.#isDue = true;
      return;
    }
    for (const { resolve } of accepted) resolve(next);
    const wakeMs = wakeAtMs(next, now);
    if (wakeMs !== null) this.#wakeAfter(wakeMs - now.nowMs);
  }

  async #write(next: Group, replaces: number): Promise<boolean> {
    const { signal } = this.#stopping;
    const revision = await this.#options.store.save(next, replaces, signal);
    if (revision !== null) this.#accept({ group: next, revision });
    return revision !== null;
  }

  #accept(stored: StoredGroup): void {
    const before = this.#stored?.group ?? null;
    this.#stored = stored;
    this.#prune();
    this.#options.onChange?.(stored.group, before);
    const view = viewOf(stored.group);
    for (const listener of [...this.#listeners.values()]) listener(view);
  }

  async #reload(): Promise<void> {
    const stored = await this.#options.store.load(this.name, this.#stopping.signal);
    if (stored !== null) this.#accept(stored);
    this.#isSure = true;
  }

  #wakeAfter(ms: number): void {
    this.#cancelWake();
    this.#cancelWake = this.#options.clock.after(ms, () => this.look());
  }

  #known(): Known {
    return {
      sinceMs: this.#sinceMs,
      heard: this.#heard,
      candidates: this.#candidates,
      load: sumOf(this.#loads),
    };
  }

  /** Whoever has a seat is no candidate; whoever has neither a seat nor a connection is nobody. */
  #prune(): void {
    const { slots } = this.#stored?.group ?? { slots: [] };
    const seated = new Set(slots.flatMap(({ occupant }) => occupant?.memberId ?? []));
    for (const memberId of seated) this.#candidates.delete(memberId);
    for (const memberId of this.#heard.keys()) {
      if (seated.has(memberId) || this.#listeners.has(memberId)) continue;
      this.#heard.delete(memberId);
      this.#loads.delete(memberId);
    }
  }

  #mustGroup(): Group {
    if (this.#stored === null) throw noGroup(this.name);
    return this.#stored.group;
  }
}

function sumOf(loads: ReadonlyMap<string, readonly number[]>): readonly number[] {
  const sum: number[] = [];
  for (const load of loads.values()) {
    for (const [expert, tokens] of load.entries()) sum[expert] = (sum[expert] ?? 0) + tokens;
  }
  return sum;
}

function noGroup(name: string): RelightError {
  return new RelightError("not_found", `Cannot find group "${name}": nobody has joined it yet`);
}

function evicted({ config, epoch }: Group, { seat }: Status): RelightError {
  return new RelightError(
    "ep_evicted",
    `Cannot resume slot ${seat?.slot} incarnation ${seat?.incarnation} of "${config.group}": the group is at epoch ${epoch} without it`,
  );
}
