// SPDX-License-Identifier: Apache-2.0
// Counts boots by how they ended, so that a fleet that starts cold is seen in its metrics. A boot is
// reported several times while it goes on and counted once, with the first report that knows its end.

import { z } from "zod";
import { codes } from "../errors.ts";

/** Boots that are remembered as counted; more than start in the minutes that one boot takes. */
const rememberedMax = 10_000;

const recordShape = z.object({
  outcome: z.enum(["warm", "partial", "cold"]),
  code: z.string().nullable(),
  /** Absent from records of older agents. */
  trust: z.object({ mode: z.enum(["closed", "insecure"]) }).nullish(),
  caches: z.array(z.object({ code: z.string().nullable() })).max(256),
  /** Absent from records of older agents. */
  weights: z
    .array(z.object({ state: z.enum(["loading", "loaded", "cold"]), code: z.string().nullable() }))
    .max(1_024)
    .default([]),
});

export interface BootLabels {
  readonly outcome: "warm" | "partial" | "cold";
  /** A row of the error table: why nothing or not everything was installed; `none` for a warm boot. */
  readonly code: string;
  /** Whether signatures were asked for; `unknown` where the record does not say. */
  readonly trust: "closed" | "insecure" | "unknown";
}

export interface WeightLabels {
  readonly outcome: "loaded" | "cold";
  /** Why a part came from no live replica; `none` where it did, or where nobody was asked. */
  readonly code: string;
}

export interface BootCounts {
  readonly boot: BootLabels;
  /** One for each part of the model that its engine held. */
  readonly weights: readonly WeightLabels[];
}

export class BootCounter {
  readonly #counted = new Set<string>();

  /** What to count; null when this boot is counted already or its record says nothing. */
  countsOf(bootId: string, recordJson: Uint8Array): BootCounts | null {
    if (this.#counted.has(bootId)) return null;
    const record = readRecord(recordJson);
    if (record === null) return null;
    this.#remember(bootId);
    const parts = [...record.caches, ...record.weights];
    const code = record.code ?? parts.find((one) => one.code !== null)?.code ?? null;
    const trust = record.trust?.mode ?? "unknown";
    return {
      boot: { outcome: record.outcome, code: labelOf(code), trust },
      weights: record.weights.map((one) => ({
        outcome: one.state === "loaded" ? "loaded" : "cold",
        code: labelOf(one.code),
      })),
    };
  }

  #remember(bootId: string): void {
    this.#counted.add(bootId);
    if (this.#counted.size <= rememberedMax) return;
    const [oldest] = this.#counted;
    if (oldest !== undefined) this.#counted.delete(oldest);
  }
}

/** Labels are a bounded set, whatever an agent writes into its record. */
function labelOf(code: string | null): string {
  if (code === null) return "none";
  return Object.hasOwn(codes, code) ? code : "internal";
}

function readRecord(recordJson: Uint8Array): z.infer<typeof recordShape> | null {
  try {
    return recordShape.parse(JSON.parse(Buffer.from(recordJson).toString("utf8")));
  } catch {
    // Another version's record is kept and listed all the same; it is only not counted.
    return null;
  }
}
