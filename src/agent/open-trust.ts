// SPDX-License-Identifier: Apache-2.0
// Sets up what an agent trusts: its key and its policy in the trust folder. One machine needs nobody:
// it makes a key and trusts exactly that. A fleet's policy is a file that its operator hands out; it is
// read again whenever it changes. A failure here closes everything and stops nothing.

import fs from "node:fs";
import path from "node:path";
import { asRelightError, RelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import type { Clock } from "../platform/clock.ts";
import { readSmall, writeWhole } from "../platform/files.ts";
import { decodeEnvelope } from "../trust/envelope.ts";
import { TrustKeeper } from "../trust/keeper.ts";
import { loadOrCreateKey } from "../trust/key-file.ts";
import type { Signer } from "../trust/keys.ts";
import { decodePolicy, policyBytesMax } from "../trust/policy.ts";
import { trustSelf } from "../trust/setup.ts";
import {
  type ArtifactTrust,
  brokenTrust,
  ClosedTrust,
  insecureTrust,
  type TrustMode,
} from "./trust.ts";

export interface TrustSettings {
  readonly mode: TrustMode;
  /** Holds the key, the newest policy and the marks against going back; shared by replicas of one owner. */
  readonly folder: string;
  /** A fleet's policy, signed by its roots; may be absent. */
  readonly policyFile: string;
  readonly environment: string;
}

interface Surroundings {
  readonly nodeId: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** Name of the key that this node authors with, in the trust folder. */
export const authorKeyName = "author.pem";
/** An envelope is a third longer than its payload, and holds signatures. */
const policyFileBytesMax = 2 * policyBytesMax;

export async function openTrust(
  settings: TrustSettings,
  surroundings: Surroundings,
): Promise<ArtifactTrust> {
  const { log, nodeId, clock, signal } = surroundings;
  if (settings.mode === "insecure") {
    log.warn("trust_insecure");
    return insecureTrust;
  }
  try {
    const signer = loadOrCreateKey(path.join(settings.folder, authorKeyName));
    const keeper = new TrustKeeper(settings.folder, clock);
    const refresh = onceEach(followPolicy({ ...settings, keeper, signer, clock }), log);
    // A policy that cannot be taken is not one that was taken back: the newest known stays in force.
    await refresh(signal);
    return new ClosedTrust({
      keeper,
      signer,
      environment: settings.environment,
      producer: { node: nodeId },
      clock,
      refresh,
      offer: (envelope, stop) => offerPolicy(envelope, { ...settings, keeper }, stop),
    });
  } catch (thrown) {
    const error = asRelightError(thrown);
    log.error("failure", { code: error.code, message: error.message });
    return brokenTrust(error);
  }
}

interface Followed {
  readonly policyFile: string;
  readonly keeper: TrustKeeper;
  readonly signer: Signer;
  readonly clock: Clock;
}

/** @returns what brings the keeper up to date: from the policy's file, else from this machine's own key. */
export function followPolicy(followed: Followed): (signal: AbortSignal) => Promise<void> {
  const { policyFile, keeper, signer, clock } = followed;
  let seen: Buffer | null = null;
  return async (signal) => {
    keeper.refresh();
    const envelope = readPolicyFile(policyFile);
    if (envelope === null) {
      await trustSelf(keeper, signer, { clock, signal });
    } else if (seen === null || !envelope.equals(seen)) {
      seen = envelope;
      await takePolicy(envelope, followed, signal);
    }
  };
}

/**
 * The roots of the first policy that lies in its place are this node's from then on: who may write there
 * may pin whom they like. Later ones need the signatures of the roots in force.
 */
async function takePolicy(
  envelope: Buffer,
  { keeper, signer }: Followed,
  signal: AbortSignal,
): Promise<void> {
  const { roots } = decodePolicy(decodeEnvelope(envelope, policyBytesMax).payload);
  await keeper.adopt(roots, signer.publicKey, signal);
  await keeper.offer(envelope, signal);
}

/** Taken only from the roots in force. The file that it replaces in our own folder is replaced with it. */
async function offerPolicy(
  envelope: Buffer,
  { keeper, folder, policyFile }: Pick<Followed, "keeper" | "policyFile"> & { folder: string },
  signal: AbortSignal,
): Promise<void> {
  if (keeper.policyEnvelope?.equals(envelope) === true) return;
  await keeper.offer(envelope, signal);
  if (path.dirname(policyFile) === folder && fs.existsSync(policyFile))
    writeWhole(policyFile, envelope);
}

/** The envelope; null when there is no such file. Links are followed: mounted secrets are links. */
export function readPolicyFile(file: string): Buffer | null {
  if (!fs.existsSync(file)) return null;
  const bytes = readSmall(fs.realpathSync(file), policyFileBytesMax);
  if (bytes === null || bytes.length > 0) return bytes;
  throw new RelightError("policy_invalid", `Cannot read policy "${file}": it is empty`);
}

/** Says each failure once and goes on with what there is: the present policy stays in force. */
function onceEach(
  work: (signal: AbortSignal) => Promise<void>,
  log: Log,
): (signal: AbortSignal) => Promise<void> {
  let said = "";
  return async (signal) => {
    try {
      await work(signal);
      said = "";
    } catch (thrown) {
      signal.throwIfAborted();
      const { code, message } = asRelightError(thrown);
      if (message !== said) log.warn("failure", { code, message });
      said = message;
    }
  };
}
