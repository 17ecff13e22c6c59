// SPDX-License-Identifier: Apache-2.0
// What a node remembers of trust, in one file of its state directory: the pinned roots, the newest
// policy it accepted, and the epochs it installed. One file because a policy and the mark that forbids
// going back behind it must change together.

import path from "node:path";
import { z } from "zod";
import { canonicalJson } from "../core/canonical-json.ts";
import { MiB } from "../core/units.ts";
import { RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import { readSmall, writeWhole } from "../platform/files.ts";
import { claimNodeLock } from "../platform/node-lock.ts";
import { acceptPolicy } from "./accept-policy.ts";
import type { Facts } from "./decide.ts";
import { decodeEnvelope } from "./envelope.ts";
import { type PublicKey, readPublicKey, writePublicKey } from "./keys.ts";
import { decodePolicy, type Policy, policyBytesMax, type Roots } from "./policy.ts";

const fileName = "trust.json";
const fileBytesMax = 16 * MiB;
const epochsMax = 10_000;
const memoryShape = z.strictObject({
  format: z.literal("relight.trust.v1"),
  roots: z.strictObject({ threshold: z.int().min(1), keys: z.array(z.string()).min(1).max(16) }),
  /** The newest policy's envelope in base64; null before the first. */
  policy: z.string().nullable(),
  epochs: z.record(z.string(), z.int().min(1)),
});
type Memory = z.infer<typeof memoryShape>;

/**
 * Any number of processes of a node may keep one folder: each change is made under the node's lock on
 * what the file then says, so that no process takes another one back to an older policy.
 */
export class TrustKeeper {
  readonly #folder: string;
  readonly #clock: Clock;
  #memory: Memory | null;
  #policy: Policy | null;

  /** @throws RelightError `store_corrupt` when the file is not what this class wrote: never "no policy". */
  constructor(folder: string, clock: Clock) {
    this.#folder = folder;
    this.#clock = clock;
    [this.#memory, this.#policy] = read(this.#file);
  }

  /** Null until a policy was accepted. It may have expired: `decide` looks. */
  get policy(): Policy | null {
    return this.#policy;
  }

  /** Whether `key` is among the roots that were pinned before the first policy. */
  isPinned(key: PublicKey): boolean {
    return this.#memory?.roots.keys.includes(writePublicKey(key)) ?? false;
  }

  /** Envelope of the present policy, to hand on to others. */
  get policyEnvelope(): Buffer | null {
    const text = this.#memory?.policy ?? null;
    return text === null ? null : Buffer.from(text, "base64");
  }

  /** Reads the file again: another process of this node may have accepted a newer policy. */
  refresh(): void {
    [this.#memory, this.#policy] = read(this.#file);
  }

  /** Pins who may sign the first policy. A node that has roots keeps them: they change by policy only. */
  async pin(roots: Roots, signal: AbortSignal): Promise<void> {
    await this.#change(signal, (memory) => {
      if (memory !== null) return memory;
      const keys = roots.keys.map(writePublicKey);
      return {
        format: "relight.trust.v1",
        roots: { threshold: roots.threshold, keys },
        policy: null,
        epochs: {},
      };
    });
  }

  /**
   * A node that so far followed nobody but itself follows others from now on: it joined a fleet.
   * @param own its own key; a node that follows any other root keeps following it
   */
  async adopt(roots: Roots, own: PublicKey, signal: AbortSignal): Promise<void> {
    await this.#change(signal, (memory, policy) => {
      const followed = policy?.roots.keys ?? memory?.roots.keys.map(readPublicKey) ?? [];
      if (followed.some(({ keyId }) => keyId !== own.keyId)) return memory;
      const keys = roots.keys.map(writePublicKey);
      return {
        format: "relight.trust.v1",
        roots: { threshold: roots.threshold, keys },
        policy: null,
        epochs: memory?.epochs ?? {},
      };
    });
  }

  /**
   * Makes an offered policy the present one, durably.
   * @throws RelightError `policy_missing` without roots, else as `acceptPolicy`.
   */
  async offer(envelope: Buffer, signal: AbortSignal): Promise<Policy> {
    const memory = await this.#change(signal, (before, present) => {
      if (before === null)
        throw new RelightError("policy_missing", "Cannot accept policy: no root is pinned");
      const pinned = { ...before.roots, keys: before.roots.keys.map(readPublicKey) };
      acceptPolicy(envelope, {
        roots: present?.roots ?? pinned,
        revokedKeys: present?.revokedKeys ?? new Set(),
        newest: { version: present?.version ?? 0, digest: present?.digest ?? "" },
        now: this.#clock.wallMs(),
      });
      return { ...before, policy: envelope.toString("base64") };
    });
    if (this.#policy === null || memory === null)
      throw new RelightError("policy_missing", "Cannot accept policy: it was not kept");
    return this.#policy;
  }

  /** The highest epoch ever installed here for this family, model and environment. */
  epochFloor(facts: Pick<Facts, "family" | "model" | "environment">): number {
    return this.#memory?.epochs[scopeOf(facts)] ?? 0;
  }

  /** Call when an artifact was installed, so that none of an earlier epoch is installed after it. */
  async remember(facts: Facts, signal: AbortSignal): Promise<void> {
    if (facts.epoch <= this.epochFloor(facts)) return;
    await this.#change(signal, (memory) => {
      if (memory === null) return memory;
      const scope = scopeOf(facts);
      const epoch = Math.max(facts.epoch, memory.epochs[scope] ?? 0);
      const entries = Object.entries({ ...memory.epochs, [scope]: epoch });
      const kept = entries.sort(([, left], [, right]) => right - left).slice(0, epochsMax);
      return { ...memory, epochs: Object.fromEntries(kept) };
    });
  }

  get #file(): string {
    return path.join(this.#folder, fileName);
  }

  async #change(
    signal: AbortSignal,
    change: (memory: Memory | null, policy: Policy | null) => Memory | null,
  ): Promise<Memory | null> {
    using _lock = await claimNodeLock(`${this.#file}.lock`, { clock: this.#clock, signal });
    const [memory, policy] = read(this.#file);
    const next = change(memory, policy);
    if (next !== null && next !== memory) writeWhole(this.#file, canonicalJson(next));
    [this.#memory, this.#policy] = read(this.#file);
    return this.#memory;
  }
}

function read(file: string): [Memory | null, Policy | null] {
  const bytes = readSmall(file, fileBytesMax);
  if (bytes === null) return [null, null];
  try {
    const memory = memoryShape.parse(JSON.parse(bytes.toString("utf8")));
    if (memory.policy === null) return [memory, null];
    const envelope = decodeEnvelope(Buffer.from(memory.policy, "base64"), policyBytesMax);
    return [memory, decodePolicy(envelope.payload)];
  } catch (cause) {
    throw new RelightError("store_corrupt", `Cannot read "${file}": it is not what was written`, {
      cause,
    });
  }
}

function scopeOf({ family, model, environment }: Pick<Facts, "family" | "model" | "environment">) {
  return canonicalJson([environment, family, model]);
}
