// SPDX-License-Identifier: Apache-2.0
// The store contract: what the coordinator remembers about sources and boots. Implementations beside
// this file all run test/contracts/store.ts.
//
// Who calls: the coordinator's registry, from one thread; calls overlap freely. A read reflects every
// write whose promise had resolved. A call that cannot give its answer rejects with
// `store_unavailable`, `store_corrupt` or `cancelled`; no answer is ever an empty one. A rejected
// write may or may not have happened: read before deciding again.
// Cost: `get`, `read`, `put`, `remove` touch one record and its index rows, `ofSource` the records of
// one source id, `onShelf` the rows it returns; only `all` walks the store.

/** What identifies one record. */
export interface SourceKey {
  /** 16 lower-case hex characters: what two workers share to exchange. */
  readonly sourceId: string;
  readonly workerId: string;
}

export type SourceStatus = "initializing" | "ready" | "stale";

/** Why a record is stale. The worker's own word is final until it publishes again. */
export type StaleBy = "request" | "timeout" | "session";

/** What a Relight agent serves. A worker that speaks ModelExpress only offers none. */
export interface Offer {
  readonly artifactId: string;
  readonly family: string;
  readonly totalBytes: number;
  readonly fileCount: number;
  readonly pieceCount: number;
  readonly baseArtifactIds: readonly string[];
  readonly endpoints: readonly string[];
  /** False while the publisher is still receiving. */
  readonly complete: boolean;
}

/** The small part of a record: all that listing and deciding need. */
export interface SourceHead extends SourceKey {
  readonly status: SourceStatus;
  readonly staleBy: StaleBy | null;
  /** Unix milliseconds by the coordinator's clock: the last word from or about the worker. */
  readonly updatedAtMs: number;
  readonly publishedAtMs: number;
  /** The session that vouches for it; null when heartbeats come as UpdateStatus. */
  readonly sessionId: string | null;
  readonly modelName: string;
  readonly workerRank: number;
  readonly accelerator: string;
  readonly trainingStep: bigint | null;
  readonly layoutSignature: string | null;
  /** The SPIFFE id of whoever published it; null where nobody had to prove anything. */
  readonly publisher: string | null;
  readonly offer: Offer | null;
}

/** A head as it stands in the store. `revision` changes with every write of the record. */
export interface Stored {
  readonly head: SourceHead;
  readonly revision: number;
}

export interface StoredWithBody extends Stored {
  /** Opaque to the store: the published messages. */
  readonly body: Uint8Array;
}

/** Where Find looks: complete offers, then partial ones. */
export type Shelf = "complete" | "partial";

export interface Put {
  readonly head: SourceHead;
  /** Absent: the body stays as it is; only for a record that exists. */
  readonly body?: Uint8Array;
  /** The revision that the write replaces; null when the record must not exist yet. */
  readonly replaces: number | null;
  /**
   * When the promise resolves. `flushed`: a power cut does not lose it. `committed`: readers see it
   * and a killed process does not lose it.
   */
  readonly when: "flushed" | "committed";
}

export interface Boot {
  readonly bootId: string;
  readonly nodeId: string;
  readonly model: string;
  /** Unix milliseconds. */
  readonly startedAtMs: number;
  /** Null when the replica never became healthy. */
  readonly readyMs: number | null;
  /** UTF-8 JSON. */
  readonly record: Uint8Array;
}

export interface Page {
  /** Rows whose worker id comes after this one in the store's own order; "" for the first. */
  readonly after: string;
  readonly limit: number;
}

/** What another part of the coordinator keeps whole, by name: the record of an expert group. */
export interface StoredDocument {
  readonly bytes: Uint8Array;
  /** Changes with every write, and is never met again. */
  readonly revision: number;
}

export interface PutDocument {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** The revision that the write replaces; null when there must be none of that name. */
  readonly replaces: number | null;
}

export interface Store extends AsyncDisposable {
  get(key: SourceKey, signal: AbortSignal): Promise<Stored | undefined>;
  read(key: SourceKey, signal: AbortSignal): Promise<StoredWithBody | undefined>;
  /** False when the record is not at `replaces`: somebody else was first, nothing was written. */
  put(put: Put, signal: AbortSignal): Promise<boolean>;
  /** False when the record is not at `revision`. */
  remove(key: SourceKey, revision: number, signal: AbortSignal): Promise<boolean>;
  ofSource(sourceId: string, signal: AbortSignal): Promise<readonly SourceHead[]>;
  onShelf(
    at: { sourceId: string; shelf: Shelf } & Page,
    signal: AbortSignal,
  ): Promise<readonly SourceHead[]>;
  /** Every record, in batches, in no promised order; not a snapshot. */
  all(signal: AbortSignal): AsyncIterable<readonly SourceHead[]>;
  /** The same boot id replaces. Beyond the limits given at opening the oldest are dropped. */
  putBoot(boot: Boot, signal: AbortSignal): Promise<void>;
  /** Newest report first. */
  boots(limit: number, signal: AbortSignal): Promise<readonly Boot[]>;
  document(name: string, signal: AbortSignal): Promise<StoredDocument | undefined>;
  /**
   * The new revision once a killed process does not lose it; null when the document is not at
   * `replaces`: somebody else was first, nothing was written.
   */
  putDocument(put: PutDocument, signal: AbortSignal): Promise<number | null>;
  /** All names, ascending. */
  documentNames(signal: AbortSignal): Promise<readonly string[]>;
  /** Resolves when the store can answer now. */
  probe(signal: AbortSignal): Promise<void>;
}

export interface BootLimits {
  readonly bootsMax: number;
  /** Sum of the records kept, in bytes. */
  readonly bootBytesMax: number;
}

export const bootLimitsDefault: BootLimits = { bootsMax: 10_000, bootBytesMax: 256 * 1024 * 1024 };

/** Null when the record is not to be offered. */
export function shelfOf(head: SourceHead): Shelf | null {
  if (head.status !== "ready" || head.offer === null) return null;
  return head.offer.complete ? "complete" : "partial";
}
