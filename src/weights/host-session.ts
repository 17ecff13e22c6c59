// SPDX-License-Identifier: Apache-2.0
// One connection to the agent: an engine that publishes and loads, or another agent that reads. What was
// published through it is withdrawn when it ends, and so are the leases, so a killed process withdraws
// itself.

import { asRelightError, RelightError } from "../errors.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import type { Clock } from "../platform/clock.ts";
import { startDeadlineOn } from "../platform/deadline.ts";
import { handleBytes } from "./carrier.ts";
import { type Coordinate, coordinateKey } from "./coordinate.ts";
import { type Arguments, read } from "./host-calls.ts";
import { beginChange, drainMs, endChange } from "./leases.ts";
import { contentId, parseLayout, type WeightLayout } from "./manifest.ts";
import type { Publication, PublicationEvents, Publications } from "./publications.ts";
import { type DeviceParts, digestLayout, type EngineMemory } from "./publish.ts";
import { type PullLimits, type PullReport, pullWeights } from "./pull.ts";
import { aborted, type Readers, type Reply } from "./readers.ts";
import { ownManifest, Relay } from "./relay.ts";
import type { WeightSource } from "./source.ts";

export interface WeightHostOptions {
  readonly parts: DeviceParts & { readonly clock: Clock };
  readonly readersMax: number;
  readonly limits: PullLimits;
  /** Longest time for digesting what is published. */
  readonly digestMsMax: number;
  /** Longest time for reading from sources. */
  readonly loadMsMax: number;
  /** Longest time that a load comes back to sources that are busy. */
  readonly busyMsMax: number;
  /** Longest time that a change of the weights waits for readers. */
  readonly drainMsMax: number;
  /**
   * Where a target of this layout may read, best first; `hints` are what the engine named itself.
   * @throws RelightError when nothing can be known of sources
   */
  readonly sourcesFor: (
    want: { readonly layout: WeightLayout; readonly hints: readonly string[] },
    signal: AbortSignal,
  ) => Promise<FoundSources>;
  /** Where other agents reach this one; without it nobody reads what a load has verified so far. */
  readonly address?: () => string | null;
  /** Opens a source that a busy one has named; `null` for an address that leads nowhere from here. */
  readonly openSource?: (address: string) => (WeightSource & Disposable) | null;
  /** What all readers of a publication together may take while it serves; Infinity when not given. */
  readonly bytesPerSecondMax?: number;
  /** Ranges of 8 MiB that may lie in pinned host memory while others read over a network. */
  readonly servedRangesMax?: number;
  /** Where ranges are served over HTTP. */
  readonly httpEndpoint?: () => string | null;
  /** For whoever announces what is offered here and keeps the ledger. None of them may throw. */
  readonly events?: WeightEvents;
  /**
   * Whether anybody may have weights for an engine that has not built its model yet. At once when absent.
   * @throws RelightError why it can load them from elsewhere at once
   */
  readonly lookFor?: (
    want: {
      readonly model: string;
      readonly coordinate: Coordinate;
      readonly hints: readonly string[];
    },
    signal: AbortSignal,
  ) => Promise<void>;
  /** Resolves when what the engine reads next from disk is there; never rejects. At once when absent. */
  readonly whenWarm?: () => Promise<void>;
}

/** Disposing ends the connections that were made to them. */
export interface FoundSources extends Disposable {
  readonly sources: readonly WeightSource[];
}

export interface WeightEvents extends PublicationEvents {
  /** An engine asks for weights; the returned function hears how that ended. */
  readonly loading: (layout: WeightLayout) => (outcome: PullReport | RelightError) => void;
}

interface Call {
  readonly op: string;
  readonly args: unknown;
  readonly handles: readonly MemoryHandle[];
}

/** An engine or an agent at the other end of one connection. */
export class WeightSession {
  readonly #publications: Publications;
  readonly #options: WeightHostOptions;
  readonly #readers: Readers;

  constructor(publications: Publications, options: WeightHostOptions, readers: Readers) {
    this.#publications = publications;
    this.#options = options;
    this.#readers = readers;
  }

  async call({ op, args, handles }: Call, signal: AbortSignal): Promise<Reply> {
    switch (op) {
      case "publish":
        return plain(await this.#publish(read("publish", args), handles, signal));
      case "load":
        return plain(await this.#load(read("load", args), handles, signal));
      case "look": {
        const { sources: hints, ...want } = read("look", args);
        await this.#options.lookFor?.({ ...want, hints }, signal);
        return plain({});
      }
      case "warm":
        read("warm", args);
        await Promise.race([this.#options.whenWarm?.(), aborted(signal)]);
        return plain({});
      case "change":
        return plain(
          await this.#change(this.#publications.getOwn(read("change", args).key, this), signal),
        );
      case "changed":
        return plain(
          await this.#changed(this.#publications.getOwn(read("changed", args).key, this), signal),
        );
      case "withdraw":
        this.#publications.getOwn(read("withdraw", args).key, this);
        this.#publications.removeOf(this);
        return plain({});
      default: {
        const reply = await this.#readers.call(op, args, signal);
        if (reply !== null) return reply;
        throw new RelightError("request_invalid", `Cannot do "${op.slice(0, 64)}": it is no call`);
      }
    }
  }

  end(): void {
    this.#publications.removeOf(this);
    // Whoever waits for the end of a change that will not end learns that the source is gone.
    this.#settle();
    this.#readers.end();
  }

  async #publish(
    args: Arguments<"publish">,
    handles: readonly MemoryHandle[],
    signal: AbortSignal,
  ) {
    const layout = parseLayout(args.layout);
    const memory = engineMemory(args.deviceUuid, layout, handles);
    const { manifest, costBytes } = await this.#digest({ layout, memory }, 1, signal);
    const added = this.#publications.add({ owner: this, memory, manifest });
    return { ...added, content: contentId(manifest), costBytes };
  }

  async #load(
    args: Arguments<"load">,
    handles: readonly MemoryHandle[],
    signal: AbortSignal,
  ): Promise<object> {
    const target = parseLayout(args.layout);
    const memory = engineMemory(args.deviceUuid, target, handles);
    const ended = this.#options.events?.loading(target);
    const relay = new Relay(this.#publications, { owner: this, target, memory });
    try {
      const report = await this.#pull({ target, memory, args, relay }, signal);
      ended?.(report);
      return { ...this.#offerOn({ target, memory, report, relay }), ...told(report) };
    } catch (cause) {
      relay.abandon();
      const error = asRelightError(cause);
      ended?.(error);
      throw error;
    }
  }

  /** Where sources are busy it comes back, and then there may be others: every target becomes one. */
  async #pull(
    job: {
      readonly target: WeightLayout;
      readonly memory: EngineMemory;
      readonly args: Arguments<"load">;
      readonly relay: Relay;
    },
    signal: AbortSignal,
  ): Promise<PullReport> {
    const { parts, limits, sourcesFor, loadMsMax, busyMsMax, openSource } = this.#options;
    const { target, memory, args, relay } = job;
    const address = this.#options.address?.() ?? null;
    const until = parts.clock.monotonicMs() + busyMsMax;
    for (let waitMs = waitMsMin; ; waitMs = Math.min(2 * waitMs, waitMsMax)) {
      using found = await sourcesFor({ layout: target, hints: args.sources }, signal);
      try {
        const { sources } = found;
        const what = "loading weights from a live replica";
        using deadline = startDeadlineOn(parts.clock, { what, ms: loadMsMax, parent: signal });
        const pull = {
          target,
          memory,
          sources,
          content: args.content,
          limits,
          address,
          watcher: relay,
          ...(openSource === undefined ? {} : { openSource }),
        };
        return await pullWeights(parts, pull, deadline.signal);
      } catch (cause) {
        const error = asRelightError(cause);
        const isWorthWaiting = error.details["busy"] === true;
        if (!isWorthWaiting || parts.clock.monotonicMs() + waitMs >= until) throw error;
      }
      await parts.clock.sleep(waitMs, signal);
    }
  }

  /** Verified: from here on this replica is a source like any other, unless another one is. */
  #offerOn(loaded: {
    readonly target: WeightLayout;
    readonly memory: EngineMemory;
    readonly report: PullReport;
    readonly relay: Relay;
  }) {
    const { target, memory, report, relay } = loaded;
    const key = coordinateKey(target.coordinate);
    const generation = relay.complete();
    if (generation !== null) return { key, generation, isOffered: true };
    const manifest = ownManifest(target, report.manifest, 1);
    try {
      return { ...this.#publications.add({ owner: this, memory, manifest }), isOffered: true };
    } catch {
      // The weights are there and right; that a sibling of this part offers them already costs nothing.
      return { key, generation: 0, isOffered: false };
    }
  }

  async #change(publication: Publication, signal: AbortSignal) {
    const { clock } = this.#options.parts;
    const { promise, resolve } = Promise.withResolvers<void>();
    publication.leases = beginChange(publication.leases);
    this.#publications.withhold(publication);
    publication.settled = promise;
    this.#settle = resolve;
    const until = clock.monotonicMs() + this.#options.drainMsMax;
    for (;;) {
      const now = clock.monotonicMs();
      const leftMs = Math.min(drainMs(publication.leases, now), until - now);
      if (leftMs <= 0) break;
      await clock.sleep(Math.min(leftMs, drainStepMs), signal);
    }
    // Who still reads after the deadline reads torn tensors, and its digests tell it so.
    const readers = publication.leases.leases.length;
    return { generation: publication.leases.generation, readers };
  }

  async #changed(publication: Publication, signal: AbortSignal) {
    const { generation } = publication.leases;
    const { manifest: layout, memory } = publication;
    const { manifest } = await this.#digest({ layout, memory }, generation, signal);
    publication.leases = endChange(publication.leases);
    this.#settle();
    this.#publications.renew(publication, manifest);
    return { generation, content: contentId(manifest) };
  }

  async #digest(
    what: { readonly layout: WeightLayout; readonly memory: EngineMemory },
    generation: number,
    signal: AbortSignal,
  ) {
    const wait = { signal, deadlineMs: this.#options.digestMsMax };
    return await digestLayout(this.#options.parts, what, { generation, wait });
  }

  #settle: () => void = () => undefined;
}

const drainStepMs = 5;
/** First wait for a source with too many readers, and the longest; each is twice the one before. */
const waitMsMin = 50;
const waitMsMax = 1_000;

/** What the engine hears of its load. */
function told({ manifest: _, ...report }: PullReport) {
  return report;
}

function plain(value: unknown): Reply {
  return { value, handles: [] };
}

function engineMemory(
  uuid: string,
  layout: WeightLayout,
  handles: readonly MemoryHandle[],
): EngineMemory {
  layout.allocations.forEach(({ bytes }, index) => {
    const handle = handles[index];
    const mapped = handle === undefined ? 0 : handleBytes(handle);
    if (mapped >= bytes && handles.length === layout.allocations.length) return;
    throw new RelightError(
      "request_invalid",
      `Cannot use ${handles.length} handles for ${layout.allocations.length} allocations: ` +
        `allocation ${index} has ${bytes} bytes, its handle ${mapped}`,
    );
  });
  return { deviceUuid: uuid, handles };
}
