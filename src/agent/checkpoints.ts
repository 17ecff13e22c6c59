// SPDX-License-Identifier: Apache-2.0
// Checkpoints without an engine: offers one that lies on this node, or brings one from peers. What
// `relight model publish` and `relight model fetch` do; on the way a checkpoint is an artifact like any.

import { readDigestRecord } from "../artifacts/digest-record.ts";
import type { Family } from "../artifacts/family.ts";
import type { HashPool } from "../artifacts/hash-pool.ts";
import { mergeFacts } from "../artifacts/identity.ts";
import { encodeManifest } from "../artifacts/manifest.ts";
import { type Receipt, readReceipts } from "../artifacts/receipt.ts";
import { isAsSealed, type Seal } from "../artifacts/seal.ts";
import { asRelightError, type RelightError } from "../errors.ts";
import { startDeadlineOn } from "../platform/deadline.ts";
import { CheckpointSealer } from "./checkpoint-sealer.ts";
import { claimCheckpoint, takesBack } from "./claimed-checkpoint.ts";
import { type CacheRecord, Ledger } from "./ledger.ts";
import { type CacheParts, type CacheSettings, ReplicaCaches } from "./replica-caches.ts";
import { subjectOf } from "./trust.ts";

/** A download that ends a moment before we look is waited for, one that goes on is not. */
const settleMsMax = 30_000;

export interface CheckpointOptions {
  readonly family: Family;
  /** Absolute, links resolved. */
  readonly root: string;
  readonly settings: CacheSettings;
  readonly parts: CacheParts;
  readonly pool: HashPool;
  readonly stateFolder: string;
  readonly nodeId: string;
}

export interface FetchedCheckpoint {
  readonly record: CacheRecord;
  /** Why nothing could be fetched, when it is not the checkpoint's own reason. */
  readonly failure: Pick<RelightError, "code" | "message"> | null;
}

export interface CheckpointNode {
  /**
   * Seals what lies there. Digests of an earlier look count as long as nothing has changed.
   * @throws RelightError `structure_invalid`, `entry_changed`, `disk_` codes, or the signal's reason
   */
  seal(signal: AbortSignal): Promise<Seal | null>;
  /** Offers what lies there, and what changes in it, until `stop`. */
  publish(stop: AbortSignal): Promise<void>;
  /** Brings what peers have; what is here whole from an earlier time is not asked for. */
  fetch(signal: AbortSignal): Promise<FetchedCheckpoint>;
}

export function openCheckpoint(options: CheckpointOptions): CheckpointNode {
  const { family, root, settings, pool, stateFolder, nodeId } = options;
  const { clock, narrator, trust, sealer: inner, log } = options.parts;
  const hashing = (done: number, total: number) =>
    narrator.transfer({
      family: "hashing",
      piecesDone: done,
      piecesTotal: total,
      bytesDone: done,
    });
  const at = { pool, stateFolder, onProgress: hashing };
  const sealer = new CheckpointSealer(inner, at);
  const parts: CacheParts = { ...options.parts, sealer, claim: claimCheckpoint(at) };
  const model = settings.facts.model ?? "";
  const ledger = new Ledger({ clock, nodeId, model, program: "", trust: trust.summary });
  const caches = new ReplicaCaches({ command: [], env: {} }, { settings, parts, ledger });
  const { identity } = subjectOf(family, mergeFacts(settings.facts), settings.extraIdentity);
  let isPrepared = false;
  return {
    seal: async (signal) => {
      using deadline = startDeadlineOn(clock, {
        what: "waiting until the files have settled",
        ms: settleMsMax,
        parent: signal,
      });
      for (;;) {
        try {
          const settledBeforeMs = clock.wallMs() - settings.settleMs;
          return await sealer.seal({ family, root, excluded: [] }, { settledBeforeMs }, signal);
        } catch (thrown) {
          if (asRelightError(thrown).code !== "entry_changed") throw thrown;
          await clock.sleep(Math.max(100, settings.settleMs / 2), deadline.signal).catch(() => {
            signal.throwIfAborted();
            throw thrown;
          });
        }
      }
    },
    publish: async (stop) => {
      if (!isPrepared) await caches.prepare(false, stop);
      await caches
        .publishUntil(stop, async () => {})
        .catch((thrown: unknown) => {
          if (!stop.aborted) throw thrown;
        });
    },
    fetch: async (signal) => {
      const receipt = findWhole(options, identity, (error) =>
        log.warn("failure", { code: error.code, message: error.message }),
      );
      if (receipt !== null && !takesBack(trust.recheck(receipt), receipt)) {
        const record = ledger.cache(family.name, root);
        record.state = "present";
        record.artifactId = receipt.artifactId;
        return { record, failure: null };
      }
      isPrepared = true;
      await caches.prepare(true, signal);
      const { code, reason, caches: records } = ledger.record;
      const record = records[0] ?? ledger.cache(family.name, root);
      const why = record.code === null ? { code, reason } : record;
      const isCold = record.state === "cold" && why.code !== null;
      return {
        record,
        failure: isCold && why.code !== null ? { code: why.code, message: why.reason ?? "" } : null,
      };
    },
  };
}

/**
 * The receipt of the checkpoint that lies here whole, unchanged since it was installed under this
 * identity: what is known of the folder's files then makes its very artifact. Reads no file of it.
 */
function findWhole(
  { family, root, stateFolder }: CheckpointOptions,
  identity: Readonly<Record<string, string>>,
  onInvalid: (error: RelightError) => void,
): Receipt | null {
  const known = [...readDigestRecord(stateFolder, root).values()];
  if (known.length === 0 || !known.every((file) => isAsSealed(root, file))) return null;
  const files = known.map(({ entry }) => entry);
  const { artifactId } = encodeManifest({ family: family.name, files });
  const isOurs = ({ artifactId: id, trust }: Receipt) =>
    id === artifactId && sameTexts(trust?.facts.identity ?? {}, identity);
  return readReceipts(root, onInvalid).find(isOurs) ?? null;
}

function sameTexts(
  left: Readonly<Record<string, string>>,
  right: Readonly<Record<string, string>>,
): boolean {
  const names = new Set([...Object.keys(left), ...Object.keys(right)]);
  return [...names].every((name) => left[name] === right[name]);
}
