// SPDX-License-Identifier: Apache-2.0
// How records lie in LMDB: arrays in a fixed order, so that a head of some 300 bytes decodes in one
// step. What is read is checked, since a store directory may have been written by anything.

import { RelightError } from "../errors.ts";
import type { Boot, Offer, SourceHead, SourceKey, SourceStatus, StaleBy } from "./store.ts";

/** Raised when a reader of the last version could misread what this one writes. */
export const formatVersion = 1;

export function encodeHead(head: SourceHead): readonly unknown[] {
  const { status, staleBy, updatedAtMs, publishedAtMs, sessionId, modelName, workerRank } = head;
  const { accelerator, trainingStep, layoutSignature, offer, publisher } = head;
  const step = trainingStep === null ? null : String(trainingStep);
  const times = [updatedAtMs, publishedAtMs];
  const worker = [sessionId, modelName, workerRank, accelerator, step, layoutSignature];
  const offered = offer === null ? null : encodeOffer(offer);
  return [status, staleBy, ...times, ...worker, offered, publisher];
}

function encodeOffer(offer: Offer): readonly unknown[] {
  const { artifactId, family, totalBytes, fileCount, pieceCount } = offer;
  const { baseArtifactIds, endpoints, complete } = offer;
  const artifact = [artifactId, family, totalBytes, fileCount, pieceCount];
  return [...artifact, baseArtifactIds, endpoints, complete];
}

/** @throws RelightError `store_corrupt`. */
export function decodeHead({ sourceId, workerId }: SourceKey, value: unknown): SourceHead {
  const fields = new Fields(`source ${sourceId}/${workerId}`, value);
  return {
    sourceId,
    workerId,
    status: fields.one<SourceStatus>(["initializing", "ready", "stale"]),
    staleBy: fields.one<StaleBy | null>([null, "request", "timeout", "session"]),
    updatedAtMs: fields.number(),
    publishedAtMs: fields.number(),
    sessionId: fields.textOrNull(),
    modelName: fields.text(),
    workerRank: fields.number(),
    accelerator: fields.text(),
    trainingStep: fields.bigintOrNull(),
    layoutSignature: fields.textOrNull(),
    offer: decodeOffer(fields),
    publisher: fields.textOrAbsent(),
  };
}

function decodeOffer(head: Fields): Offer | null {
  const fields = head.nestedOrNull();
  if (fields === null) return null;
  return {
    artifactId: fields.text(),
    family: fields.text(),
    totalBytes: fields.number(),
    fileCount: fields.number(),
    pieceCount: fields.number(),
    baseArtifactIds: fields.texts(),
    endpoints: fields.texts(),
    complete: fields.one<boolean>([true, false]),
  };
}

export function encodeBoot(boot: Boot): readonly unknown[] {
  const { bootId, nodeId, model, startedAtMs, readyMs, record } = boot;
  return [bootId, nodeId, model, startedAtMs, readyMs, record];
}

/** @throws RelightError `store_corrupt`. */
export function decodeBoot(value: unknown): Boot {
  const fields = new Fields("boot", value);
  return {
    bootId: fields.text(),
    nodeId: fields.text(),
    model: fields.text(),
    startedAtMs: fields.number(),
    readyMs: fields.numberOrNull(),
    record: fields.bytes(),
  };
}

/** @throws RelightError `store_corrupt`. */
export function decodeBootRow(value: unknown): { sequence: number; bytes: number } {
  const fields = new Fields("boot index", value);
  return { sequence: fields.number(), bytes: fields.number() };
}

export function corrupt(what: string, cause?: unknown): RelightError {
  return new RelightError(
    "store_corrupt",
    `Cannot read the store: ${what} is not what Relight writes`,
    {
      cause,
    },
  );
}

/** Takes fields one after the other; each must have its type. */
class Fields {
  readonly #what: string;
  readonly #values: readonly unknown[];
  #next = 0;

  constructor(what: string, value: unknown) {
    if (!Array.isArray(value)) throw corrupt(what);
    this.#what = what;
    this.#values = value;
  }

  text(): string {
    const value = this.#take();
    return typeof value === "string" ? value : this.#refuse();
  }

  textOrNull(): string | null {
    const value = this.#take();
    return value === null || typeof value === "string" ? value : this.#refuse();
  }

  /** For a field that earlier versions did not write. */
  textOrAbsent(): string | null {
    return this.#next < this.#values.length ? this.textOrNull() : null;
  }

  texts(): readonly string[] {
    const value = this.#take();
    return isTexts(value) ? value : this.#refuse();
  }

  number(): number {
    return this.numberOrNull() ?? this.#refuse();
  }

  numberOrNull(): number | null {
    const value = this.#take();
    return value === null || Number.isSafeInteger(value)
      ? (value as number | null)
      : this.#refuse();
  }

  bigintOrNull(): bigint | null {
    const value = this.textOrNull();
    if (value === null) return null;
    return /^\d{1,20}$/.test(value) ? BigInt(value) : this.#refuse();
  }

  one<Value extends string | boolean | null>(values: readonly Value[]): Value {
    const value = this.#take();
    const at = values.indexOf(value as Value);
    return at === -1 ? this.#refuse() : (values[at] as Value);
  }

  bytes(): Uint8Array {
    const value = this.#take();
    return value instanceof Uint8Array ? value : this.#refuse();
  }

  nestedOrNull(): Fields | null {
    const value = this.#take();
    return value === null ? null : new Fields(this.#what, value);
  }

  #take(): unknown {
    return this.#values[this.#next++];
  }

  #refuse(): never {
    throw corrupt(`field ${this.#next} of ${this.#what}`);
  }
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((each) => typeof each === "string");
}
