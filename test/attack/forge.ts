// SPDX-License-Identifier: Apache-2.0
// Honest and forged artifacts: files with a manifest, a statement by whoever, and what a source serves.

import { toStatementIdentity } from "../../src/agent/identity-wire.ts";
import {
  encodeManifest,
  listPieces,
  type ManifestFile,
  type SealedManifest,
} from "../../src/artifacts/manifest.ts";
import {
  type Authorship,
  encodeStatement,
  statementPayloadType,
} from "../../src/artifacts/statement.ts";
import { canonicalJson, type Json } from "../../src/core/canonical-json.ts";
import { blake3Hex, wholeDigest } from "../../src/core/digest.ts";
import { type Envelope, encodeEnvelope, signEnvelope } from "../../src/trust/envelope.ts";
import { generateKey, type Signer, signerFrom, writePublicKey } from "../../src/trust/keys.ts";
import type { PolicyDocument } from "../../src/trust/policy.ts";
import { firstPolicy } from "../../src/trust/setup.ts";
import { timeText } from "../../src/trust/time.ts";
import {
  type HostileSource,
  identityFor,
  type ListedSource,
  model,
  type StatementAnswer,
} from "./plan.ts";

const day = 86_400_000;

export interface Forged {
  readonly path: string;
  readonly bytes: Buffer;
  readonly mode?: number;
  readonly form?: "plain" | "rooted";
}

/** Keys of everybody in the play. */
export function makeKeys() {
  const make = () => signerFrom(generateKey("ed25519"));
  return {
    root: make(),
    otherRoot: make(),
    author: make(),
    mallory: make(),
    revoked: make(),
    otherFamily: make(),
    otherModel: make(),
    otherPlace: make(),
    witness: make(),
    secondWitness: make(),
  };
}
export type Keys = ReturnType<typeof makeKeys>;

export const epochMin = 3;
export const environment = "default";

/** The fleet's policy that the target obeys, version 7. */
export function policyFor(keys: Keys, changes: Partial<PolicyDocument> = {}): PolicyDocument {
  const now = Date.now();
  const names = [
    "author",
    "revoked",
    "otherFamily",
    "otherModel",
    "otherPlace",
    "witness",
    "secondWitness",
  ] as const;
  const document = firstPolicy({
    roots: [keys.root.publicKey],
    rootThreshold: 1,
    identities: names.map((name) => ({ name, key: writePublicKey(keys[name].publicKey) })),
    now: now - day,
    lifetimeMs: 30 * day,
  });
  const all = { families: ["*"], models: ["*"], environments: ["*"], threshold: 1 };
  return {
    ...document,
    version: 7,
    minimumEpoch: epochMin,
    authoredAfter: timeText(now - 20 * day),
    revoked: { keys: [keys.revoked.publicKey.keyId], artifacts: [] },
    rules: [
      { ...all, identities: ["author"] },
      { ...all, identities: ["otherFamily"], families: ["something-else"] },
      { ...all, identities: ["otherModel"], models: ["allowed/*"] },
      { ...all, identities: ["otherPlace"], environments: ["staging"] },
      { ...all, identities: ["witness", "secondWitness"], threshold: 2 },
    ],
    ...changes,
  };
}

export function honestFiles(name: string): Forged[] {
  return [
    { path: "k/kernel.bin", bytes: Buffer.from(`kernel of ${name}`) },
    { path: "k/kernel.json", bytes: Buffer.from(`{"name": "${name}"}`) },
  ];
}

export function manifestOf(family: string, files: readonly Forged[]): SealedManifest {
  const entries = files.map(({ path, bytes, mode = 0o644, form = "plain" }) => ({
    path,
    mode: mode as ManifestFile["mode"],
    size: bytes.length,
    form,
    digest: wholeDigest(blake3Hex(bytes)),
    chunks: [],
  }));
  return encodeManifest({ family, files: entries });
}

export function authorshipFor(family: string, changes: Partial<Authorship> = {}): Authorship {
  const now = Date.now();
  return {
    identity: toStatementIdentity(identityFor(family)),
    model,
    environment,
    producer: {},
    coverage: [],
    createdAt: now - 60_000,
    expiresAt: now + day,
    epoch: epochMin,
    ...changes,
  };
}

/** The statement with something changed that no author would write, signed all the same. */
export function statementFor(
  manifest: SealedManifest,
  authorship: Authorship,
  signers: readonly Signer[],
  change: (statement: Record<string, unknown>) => void = () => {},
): Envelope {
  const statement = JSON.parse(encodeStatement({ manifest, authorship }).toString("utf8"));
  change(statement);
  const payload = Buffer.from(canonicalJson(statement as Json), "utf8");
  return signEnvelope({ payloadType: statementPayloadType, payload }, signers);
}

export function answerWith(envelope: Envelope): StatementAnswer {
  return { kind: "bytes", base64: encodeEnvelope(envelope).toString("base64") };
}

/** A source that serves exactly this. */
export function sourceOf(
  family: string,
  files: readonly Forged[],
  options: { readonly statement: StatementAnswer; readonly manifest?: SealedManifest },
): HostileSource {
  const manifest = options.manifest ?? manifestOf(family, files);
  const byPath = new Map(files.map((file) => [file.path, file.bytes]));
  return {
    family,
    artifactId: manifest.artifactId,
    totalBytes: 1_000,
    statement: options.statement,
    manifest: manifest.bytes.toString("base64"),
    pieces: listPieces(manifest).map(({ fileIndex }) =>
      (byPath.get(manifest.files[fileIndex]?.path ?? "") ?? Buffer.alloc(0)).toString("base64"),
    ),
    isMislabelled: false,
  };
}

/** What an author of the policy would offer. */
export function honestSource(
  family: string,
  signers: readonly Signer[],
  changes: Partial<Authorship> = {},
  files: readonly Forged[] = honestFiles(family),
): HostileSource {
  const manifest = manifestOf(family, files);
  const envelope = statementFor(manifest, authorshipFor(family, changes), signers);
  return sourceOf(family, files, { manifest, statement: answerWith(envelope) });
}

/** Where nobody listens. */
export const nowhere = "http://127.0.0.1:1";

/** As an honest coordinator would list it, but for the endpoint. */
export function listedAs(family: string, source: HostileSource | undefined): ListedSource {
  const { artifactId = "", totalBytes = 0 } = source ?? {};
  return { family, artifactId, totalBytes, endpoint: nowhere, identity: "", times: 1 };
}
