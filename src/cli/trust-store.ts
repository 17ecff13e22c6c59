// SPDX-License-Identifier: Apache-2.0
// What the `relight trust` commands share: this node's keeper, the keys that lie in its trust folder,
// and putting a new version of the policy into force here.

import fs from "node:fs";
import path from "node:path";
import { authorKeyName, readPolicyFile } from "../agent/open-trust.ts";
import type { Config } from "../config/schema.ts";
import { RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { writeWhole } from "../platform/files.ts";
import { decodeEnvelope, type Envelope, encodeEnvelope, listSigners } from "../trust/envelope.ts";
import { TrustKeeper } from "../trust/keeper.ts";
import { loadKey, loadOrCreateKey } from "../trust/key-file.ts";
import type { Signer } from "../trust/keys.ts";
import { decodePolicy, type Policy, policyBytesMax } from "../trust/policy.ts";
import { trustSelf } from "../trust/setup.ts";

const dayMs = 86_400_000;
export const policyLifetimeMs = 90 * dayMs;
export const rootKeyName = "root.pem";

export interface TrustStore {
  readonly folder: string;
  readonly policyFile: string;
  readonly keeper: TrustKeeper;
  /** The key that this node authors with. */
  readonly author: Signer;
}

/** With the policy in force: the file's, when it is newer, else the keeper's. */
export async function openTrustStore(config: Config, signal: AbortSignal): Promise<TrustStore> {
  const folder = config["trust.dir"];
  const author = loadOrCreateKey(path.join(folder, authorKeyName));
  const keeper = new TrustKeeper(folder, systemClock);
  const store = { folder, policyFile: config["trust.policy"], keeper, author };
  const envelope = readPolicyFile(store.policyFile);
  if (envelope === null) await trustSelf(keeper, author, { clock: systemClock, signal });
  return store;
}

export function presentPolicy({ keeper, policyFile }: TrustStore): Policy {
  const envelope = readPolicyFile(policyFile);
  const filed = envelope === null ? null : readPolicy(envelope);
  const kept = keeper.policy;
  const newest = [filed, kept]
    .filter((policy) => policy !== null)
    .toSorted((left, right) => right.version - left.version)[0];
  if (newest !== undefined) return newest;
  throw new RelightError("policy_missing", `Cannot read a policy: "${policyFile}" does not exist`);
}

export function readPolicy(envelope: Buffer): Policy {
  return decodePolicy(decodeEnvelope(envelope, policyBytesMax).payload);
}

/** Keys in the trust folder and those named, as far as they are roots of `policy`. */
export function rootSigners(
  { folder, author }: TrustStore,
  policy: Policy,
  files: readonly string[],
): Signer[] {
  const own = path.join(folder, rootKeyName);
  const found = [...files, ...(fs.existsSync(own) ? [own] : [])].map((file) => loadKey(file));
  const ids = new Set(policy.roots.keys.map(({ keyId }) => keyId));
  const signers = [...found, author].filter(({ publicKey }) => ids.has(publicKey.keyId));
  if (signers.length > 0) return signers;
  throw new RelightError(
    "not_found",
    `Cannot sign the policy: none of its roots' keys is at hand, want one as "${own}" or by --key`,
  );
}

export interface Put {
  readonly version: number;
  /** Signatures by roots, and how many it takes. */
  readonly signed: number;
  readonly wanted: number;
  /** Where the envelope was written; null where only this machine follows it. */
  readonly file: string | null;
}

/** Writes the policy to its file and, once enough roots have signed it, puts it into force here. */
export async function putPolicy(
  { keeper, policyFile, author }: TrustStore,
  envelope: Envelope,
  signal: AbortSignal,
): Promise<Put> {
  const bytes = encodeEnvelope(envelope);
  const { roots, version } = decodePolicy(envelope.payload);
  const signed = listSigners(envelope, roots.keys).length;
  // What one machine says of itself needs no file: nobody else reads it.
  const isSelf = roots.keys.every(({ keyId }) => keyId === author.publicKey.keyId);
  if (signed >= roots.threshold) {
    await keeper.adopt(roots, author.publicKey, signal);
    await keeper.offer(bytes, signal);
  }
  if (!isSelf) writeWhole(policyFile, bytes.toString("utf8"));
  return { version, signed, wanted: roots.threshold, file: isSelf ? null : policyFile };
}

export function putText({ version, signed, wanted, file }: Put): string {
  const where = file === null ? "" : `; hand out ${file}`;
  return signed >= wanted
    ? `policy version ${version} is in force here${where}`
    : `policy version ${version} has ${signed} of ${wanted} signatures: run \`relight trust sign ${file}\` where another root key is`;
}
