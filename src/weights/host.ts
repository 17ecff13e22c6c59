// SPDX-License-Identifier: Apache-2.0
// The agent's side of weights: engines of this node publish and load here, agents of targets ask here
// for offers and leases. It holds what was published for as long as the engine's connection lives, so a
// killed engine withdraws itself. Bytes never pass through it.

import { z } from "zod";
import { RelightError } from "../errors.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import type { Clock } from "../platform/clock.ts";
import { coordinateKey } from "./coordinate.ts";
import {
  beginChange,
  claim,
  drainMs,
  endChange,
  type LeaseTable,
  openLeases,
  type Refusal,
  release,
  renew,
} from "./leases.ts";
import { contentId, parseLayout, type WeightLayout, type WeightManifest } from "./manifest.ts";
import { type DeviceParts, digestLayout, type EngineMemory } from "./publish.ts";
import { type PullLimits, type PullReport, pullWeights } from "./pull.ts";
import type { WeightSource } from "./source.ts";

export interface WeightHostOptions {
  readonly parts: DeviceParts & { readonly clock: Clock };
  readonly readersMax: number;
  readonly limits: PullLimits;
  /** Longest time for digesting what is published. */
  readonly digestMsMax: number;
  /** Longest time that a change of the weights waits for readers. */
  readonly drainMsMax: number;
  /** Where a target of this coordinate may read; `hints` are what the engine named itself. */
  readonly sourcesFor: (key: string, hints: readonly string[]) => Promise<readonly WeightSource[]>;
}

interface Publication {
  readonly session: WeightSession;
  readonly memory: EngineMemory;
  manifest: WeightManifest;
  leases: LeaseTable;
  /** Resolves when no change is under way. */
  settled: Promise<void>;
}

interface Call {
  readonly op: string;
  readonly args: unknown;
  readonly handles: readonly MemoryHandle[];
}

interface Reply {
  readonly value: unknown;
  readonly handles: readonly MemoryHandle[];
}

const key = z.string().min(1).max(256);
const ttlMs = z.number().int().min(1).max(3_600_000);
const lease = z.number().int().min(1);
const deviceUuid = z.string().min(1).max(128);
const calls = {
  publish: z.strictObject({ layout: z.unknown(), deviceUuid }),
  load: z.strictObject({
    layout: z.unknown(),
    deviceUuid,
    sources: z.array(z.string().min(1).max(1_024)).max(64),
    content: z
      .string()
      .regex(/^[0-9a-f]{64}$/)
      .nullable(),
  }),
  change: z.strictObject({ key }),
  changed: z.strictObject({ key }),
  withdraw: z.strictObject({ key }),
  offer: z.strictObject({ key }),
  claim: z.strictObject({ key, generation: z.number().int().min(1), ttlMs }),
  renew: z.strictObject({ key, lease, ttlMs }),
  release: z.strictObject({ key, lease }),
};

export class WeightHost {
  readonly #options: WeightHostOptions;
  readonly #publications = new Map<string, Publication>();

  constructor(options: WeightHostOptions) {
    this.#options = options;
  }

  /** One for each connection. */
  open(): WeightSession {
    return new WeightSession(this, this.#options);
  }

  /** What is offered now, for the dashboard and the coordinator. */
  offers(): { readonly key: string; readonly content: string; readonly readers: number }[] {
    return [...this.#publications].map(([key, { manifest, leases }]) => ({
      key,
      content: contentId(manifest),
      readers: leases.leases.length,
    }));
  }

  /** @throws conflict when a worker that is still connected has published the same part. */
  add(publication: Omit<Publication, "leases" | "settled">): string {
    const name = coordinateKey(publication.manifest.coordinate);
    const present = this.#publications.get(name);
    if (present !== undefined && present.session !== publication.session) {
      throw new RelightError(
        "conflict",
        `Cannot publish "${name}": another worker of this node has published it`,
        { details: { key: name } },
      );
    }
    const generation = publication.manifest.generation;
    const leases = openLeases(this.#options.readersMax, generation);
    this.#publications.set(name, { ...publication, leases, settled: Promise.resolve() });
    return name;
  }

  /** @throws no_source */
  get(name: string): Publication {
    const found = this.#publications.get(name);
    if (found !== undefined) return found;
    throw new RelightError(
      "no_source",
      `Cannot offer "${name}": nothing was published for it here`,
    );
  }

  removeOf(session: WeightSession): void {
    for (const [name, publication] of this.#publications) {
      if (publication.session === session) this.#publications.delete(name);
    }
  }
}

/** An engine or an agent at the other end of one connection. */
export class WeightSession {
  readonly #host: WeightHost;
  readonly #options: WeightHostOptions;
  readonly #held: { readonly key: string; readonly lease: number }[] = [];

  constructor(host: WeightHost, options: WeightHostOptions) {
    this.#host = host;
    this.#options = options;
  }

  async call({ op, args, handles }: Call, signal: AbortSignal): Promise<Reply> {
    switch (op) {
      case "publish":
        return plain(await this.#publish(read("publish", args), handles, signal));
      case "load":
        return plain(await this.#load(read("load", args), handles, signal));
      case "change":
        return plain(await this.#change(this.#own(read("change", args).key), signal));
      case "changed":
        return plain(await this.#changed(this.#own(read("changed", args).key), signal));
      case "withdraw":
        this.#own(read("withdraw", args).key);
        this.#host.removeOf(this);
        return plain({});
      case "offer":
        return plain(await this.#offer(read("offer", args).key, signal));
      case "claim":
        return this.#claim(read("claim", args));
      case "renew":
        return plain(this.#renew(read("renew", args)));
      case "release":
        this.#release(read("release", args));
        return plain({});
      default:
        throw new RelightError("request_invalid", `Cannot do "${op.slice(0, 64)}": it is no call`);
    }
  }

  end(): void {
    this.#host.removeOf(this);
    // Whoever waits for the end of a change that will not end learns that the source is gone.
    this.#settle();
    for (const one of this.#held.splice(0)) this.#release(one);
  }

  async #publish(
    args: z.infer<typeof calls.publish>,
    handles: readonly MemoryHandle[],
    signal: AbortSignal,
  ) {
    const layout = parseLayout(args.layout);
    const memory = engineMemory(args.deviceUuid, layout, handles);
    const { manifest, costBytes } = await this.#digest({ layout, memory }, 1, signal);
    const name = this.#host.add({ session: this, memory, manifest });
    return { key: name, generation: manifest.generation, content: contentId(manifest), costBytes };
  }

  async #load(
    args: z.infer<typeof calls.load>,
    handles: readonly MemoryHandle[],
    signal: AbortSignal,
  ): Promise<object> {
    const target = parseLayout(args.layout);
    const memory = engineMemory(args.deviceUuid, target, handles);
    const name = coordinateKey(target.coordinate);
    const sources = await this.#options.sourcesFor(name, args.sources);
    const { parts, limits } = this.#options;
    const job = { target, memory, sources, content: args.content, limits };
    const report = await pullWeights(parts, job, signal);
    // Verified: from here on this replica is a source like any other.
    const manifest = ownManifest(target, report);
    this.#host.add({ session: this, memory, manifest });
    const { manifest: _, ...told } = report;
    return { ...told, key: name, generation: manifest.generation };
  }

  async #change(publication: Publication, signal: AbortSignal) {
    const { clock } = this.#options.parts;
    const { promise, resolve } = Promise.withResolvers<void>();
    publication.leases = beginChange(publication.leases);
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
    publication.manifest = manifest;
    publication.leases = endChange(publication.leases);
    this.#settle();
    return { generation, content: contentId(manifest) };
  }

  async #offer(name: string, signal: AbortSignal): Promise<WeightManifest> {
    const publication = this.#host.get(name);
    await Promise.race([publication.settled, aborted(signal)]);
    return this.#host.get(name).manifest;
  }

  #claim(args: z.infer<typeof calls.claim>): Reply {
    const publication = this.#host.get(args.key);
    const now = this.#options.parts.clock.monotonicMs();
    const [leases, granted] = claim(publication.leases, args, now);
    publication.leases = leases;
    if (typeof granted === "string") throw refused(granted, args.key);
    this.#held.push({ key: args.key, lease: granted.id });
    return { value: { lease: granted.id }, handles: publication.memory.handles };
  }

  #renew(args: z.infer<typeof calls.renew>) {
    const publication = this.#host.get(args.key);
    const now = this.#options.parts.clock.monotonicMs();
    const want = { id: args.lease, ttlMs: args.ttlMs };
    const [leases, granted] = renew(publication.leases, want, now);
    publication.leases = leases;
    if (typeof granted === "string") throw refused(granted, args.key);
    return { generation: granted.generation };
  }

  #release(args: { readonly key: string; readonly lease: number }): void {
    try {
      const publication = this.#host.get(args.key);
      publication.leases = release(publication.leases, args.lease);
    } catch {
      // The publication is gone, and its leases with it.
    }
  }

  #own(name: string): Publication {
    const publication = this.#host.get(name);
    if (publication.session === this) return publication;
    throw new RelightError(
      "request_invalid",
      `Cannot change "${name}": another worker published it`,
    );
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

function plain(value: unknown): Reply {
  return { value, handles: [] };
}

function read<Op extends keyof typeof calls>(op: Op, args: unknown): z.infer<(typeof calls)[Op]> {
  const parsed = calls[op].safeParse(args);
  // The schema that was looked up is the one of `op`; the union of all results loses that.
  if (parsed.success) return parsed.data as z.infer<(typeof calls)[Op]>;
  const issue = parsed.error.issues[0];
  throw new RelightError(
    "request_invalid",
    `Cannot read the call "${op}": ${issue?.path.join(".")} ${issue?.message}`,
  );
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

function handleBytes(handle: MemoryHandle): number {
  if (handle.kind === "ipc") return handle.bytes;
  return handle.pieces.reduce((sum, piece) => sum + piece.bytes, 0);
}

/** The target's own places with the digests that it has verified, in its order of tensors. */
function ownManifest(target: WeightLayout, { manifest }: PullReport): WeightManifest {
  const byName = new Map(
    manifest.tensors.map(({ name }, index) => [name, manifest.digests[index]]),
  );
  const digests = target.tensors.map(({ name }) => byName.get(name) ?? null);
  return { ...target, generation: 1, digests };
}

function refused(refusal: Refusal, name: string): RelightError {
  const why = {
    source_busy: "as many readers as it admits are reading",
    generation_changed: "its weights have changed or are changing",
    source_gone: "the lease has run out",
  }[refusal];
  return new RelightError(refusal, `Cannot read "${name}": ${why}`, { details: { key: name } });
}

async function aborted(signal: AbortSignal): Promise<never> {
  return await new Promise((_, reject) => {
    const stop = () => reject(new RelightError("cancelled", "Cannot wait: the caller has gone"));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
