// SPDX-License-Identifier: Apache-2.0
// What other agents may do here: ask for an offer, claim a lease, hear what a loading target has already,
// and read. Over a socket of this machine they get handles of the memory; over a network, ranges of it.

import { RelightError } from "../errors.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import type { Clock } from "../platform/clock.ts";
import { type Arguments, read } from "./host-calls.ts";
import { claim, type Refusal, release, renew } from "./leases.ts";
import type { WeightManifest } from "./manifest.ts";
import type { Publication, Publications } from "./publications.ts";
import { PublishedBytes } from "./published-bytes.ts";
import type { Filled, WeightServing } from "./serving.ts";
import type { SourceRange } from "./staged-carrier.ts";

export interface ReaderOptions {
  readonly clock: Clock;
  /** What all readers together may take; Infinity for no cap. */
  readonly bytesPerSecondMax: number;
  readonly serving: WeightServing;
  /** Where ranges are served over HTTP; `null` when they are not. */
  readonly httpEndpoint: () => string | null;
}

export interface Reply {
  readonly value: unknown;
  readonly handles: readonly MemoryHandle[];
}

/** Longest time that a question for more waits before it is answered with what there is. */
const haveMsMax = 500;

/** Another agent at the other end of a connection; over HTTP, all of them. */
export class Readers {
  readonly #publications: Publications;
  readonly #options: ReaderOptions;
  readonly #held: { readonly key: string; readonly lease: number }[] = [];

  constructor(publications: Publications, options: ReaderOptions) {
    this.#publications = publications;
    this.#options = options;
  }

  /** `null` for what is no reader's call. */
  async call(op: string, args: unknown, signal: AbortSignal): Promise<Reply | null> {
    switch (op) {
      case "offer":
        return plain(await this.#offer(read("offer", args).key, signal));
      case "claim":
        return this.#claim(read("claim", args));
      case "renew":
        return plain(this.#renew(read("renew", args)));
      case "release":
        this.#release(read("release", args));
        return plain({});
      case "have":
        return plain(await this.#have(read("have", args), signal));
      case "ways":
        read("ways", args);
        return plain(await this.#ways());
      case "pair": {
        const { token, id } = read("pair", args);
        await this.#options.serving.pair(this.#leased(token).memory, id, signal);
        return plain({});
      }
      case "send": {
        const { token, pair, ranges } = read("send", args);
        const named = ranges.map(([allocation, offsetBytes, bytes]) => ({
          allocation,
          offsetBytes,
          bytes,
        }));
        const publication = this.#checked(token, named);
        await this.#options.serving.send(publication.memory, { pair, ranges: named }, signal);
        return plain({});
      }
      default:
        return null;
    }
  }

  /** @throws source_gone, generation_changed, request_invalid for bytes that are no weights */
  async fill(token: string, ranges: readonly SourceRange[], signal: AbortSignal): Promise<Filled> {
    const publication = this.#checked(token, ranges);
    return await this.#options.serving.fill(publication.memory, ranges, signal);
  }

  /** The connection is over: so are the leases that it held. */
  end(): void {
    for (const one of this.#held.splice(0)) this.#release(one);
  }

  async #offer(name: string, signal: AbortSignal): Promise<WeightManifest> {
    const publication = this.#publications.get(name);
    await Promise.race([publication.settled, aborted(signal)]);
    return this.#publications.get(name).manifest;
  }

  #claim(args: Arguments<"claim">): Reply {
    const publication = this.#publications.get(args.key);
    const [leases, granted] = claim(publication.leases, args, this.#now());
    publication.leases = leases;
    if (typeof granted === "string") throw refused(granted, args.key, publication);
    this.#held.push({ key: args.key, lease: granted.id });
    const token = this.#publications.lend(publication, granted.id, args.address);
    const value = {
      lease: granted.id,
      token,
      isComplete: publication.growing.isComplete,
      bytesPerSecondMax: this.#share(publication),
    };
    return { value, handles: publication.memory.handles };
  }

  #renew(args: Arguments<"renew">) {
    const publication = this.#publications.get(args.key);
    const want = { id: args.lease, ttlMs: args.ttlMs };
    const [leases, granted] = renew(publication.leases, want, this.#now());
    publication.leases = leases;
    if (typeof granted === "string") throw refused(granted, args.key, publication);
    return { generation: granted.generation, bytesPerSecondMax: this.#share(publication) };
  }

  #release(args: { readonly key: string; readonly lease: number }): void {
    const publication = this.#publications.peek(args.key);
    // The publication is gone, and its leases with it.
    if (publication === null) return;
    publication.leases = release(publication.leases, args.lease);
    this.#publications.takeBack(publication, args.lease);
  }

  async #have({ key, known }: Arguments<"have">, signal: AbortSignal) {
    const { growing } = this.#publications.get(key);
    if (!growing.isComplete && growing.count <= known) {
      const stop = new AbortController();
      const waited = this.#options.clock.sleep(haveMsMax, stop.signal).catch(() => undefined);
      await Promise.race([growing.changed, waited, aborted(signal)]).finally(() => stop.abort());
    }
    return this.#publications.get(key).growing.packed();
  }

  async #ways() {
    const { serving, httpEndpoint } = this.#options;
    return { http: httpEndpoint(), ncclMissing: await serving.ncclMissing() };
  }

  /** Nobody gets more than all may have; who reads alone gets it all. */
  #share({ leases }: Publication): number | null {
    const { bytesPerSecondMax } = this.#options;
    if (!Number.isFinite(bytesPerSecondMax)) return null;
    return bytesPerSecondMax / Math.max(1, leases.leases.length);
  }

  #checked(token: string, ranges: readonly SourceRange[]): Publication {
    const publication = this.#leased(token);
    publication.bytes ??= new PublishedBytes(publication.manifest);
    const { bytes } = publication;
    const outside = ranges.find((range) => !bytes.includes(range));
    if (outside === undefined) return publication;
    throw new RelightError(
      "request_invalid",
      `Cannot give ${outside.bytes} bytes at ${outside.offsetBytes} of allocation ` +
        `${outside.allocation}: they are no weights`,
    );
  }

  /** @throws source_gone, generation_changed */
  #leased(token: string): Publication {
    const lent = this.#publications.lentBy(token);
    if (lent === null) {
      throw new RelightError("source_gone", "Cannot read weights: nothing is lent by this token");
    }
    const { publication, lease } = lent;
    const { leases, isChanging, generation } = publication.leases;
    const held = leases.find(({ id }) => id === lease);
    const key = publication.key;
    if (held === undefined || held.expiresAtMs <= this.#now()) {
      throw refused("source_gone", key, publication);
    }
    if (isChanging || held.generation !== generation) {
      throw refused("generation_changed", key, publication);
    }
    return publication;
  }

  #now(): number {
    return this.#options.clock.monotonicMs();
  }
}

function plain(value: unknown): Reply {
  return { value, handles: [] };
}

function refused(refusal: Refusal, name: string, publication: Publication): RelightError {
  const why = {
    source_busy: "as many readers as it admits are reading",
    generation_changed: "its weights have changed or are changing",
    source_gone: "the lease has run out",
  }[refusal];
  // Who reads has it soon: a reader too many is told where else it may go.
  const readers = [...publication.readers.values()].join("\n");
  const details = { key: name, ...(refusal === "source_busy" ? { readers } : {}) };
  return new RelightError(refusal, `Cannot read "${name}": ${why}`, { details });
}

export async function aborted(signal: AbortSignal): Promise<never> {
  return await new Promise((_, reject) => {
    const stop = () => reject(new RelightError("cancelled", "Cannot wait: the caller has gone"));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
