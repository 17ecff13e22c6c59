// SPDX-License-Identifier: Apache-2.0
// A manifest as an in-toto Statement v1 and back: what an author signs and every mirror relays. The
// statement says all that the manifest says and more, so that only one of them travels; its manifest is
// derived again at the other end and must have the artifact's id.

import { z } from "zod";
import { canonicalJson, type Json } from "../core/canonical-json.ts";
import { type Hex32, isHex32 } from "../core/digest.ts";
import { asRelightError, RelightError } from "../errors.ts";
import {
  decide,
  type Facts,
  identityMapShape,
  judgePolicy,
  type Verdict,
  type Wanted,
} from "../trust/decide.ts";
import { decodeEnvelope, type Envelope, envelopeLimits, signEnvelope } from "../trust/envelope.ts";
import { collectEvidence, type Evidence } from "../trust/evidence.ts";
import type { Signer } from "../trust/keys.ts";
import type { Policy } from "../trust/policy.ts";
import { timeMs, timeShape, timeText } from "../trust/time.ts";
import {
  checkFileCount,
  encodeManifest,
  fileProblem,
  type Manifest,
  type ManifestFile,
  type SealedManifest,
  sealForeign,
} from "./manifest.ts";
import { scanStatement } from "./statement-scan.ts";

/** The media type of in-toto statements. */
export const statementPayloadType = "application/vnd.in-toto+json";
/** Of an envelope: its largest payload in base64, and room for signatures with certificates. */
export const statementBytesMax =
  4 * Math.ceil(envelopeLimits.payloadBytesMax / 3) + 2 * 1_024 * 1_024;
const statementType = "https://in-toto.io/Statement/v1";
const predicateType = "urn:relight:artifact:v1";

/** What the author says of the artifact beyond its files. */
export interface Authorship {
  /** What two replicas must share to exchange it. */
  readonly identity: Readonly<Record<string, string>>;
  /** Empty when the family does not depend on a model. */
  readonly model: string;
  readonly environment: string;
  /** Who compiled it, for people: replica, node, versions. */
  readonly producer: Readonly<Record<string, string>>;
  /** Which warm-ups had completed when it was sealed. */
  readonly coverage: readonly string[];
  /** Unix milliseconds. */
  readonly createdAt: number;
  readonly expiresAt: number;
  readonly epoch: number;
}

export interface Statement {
  readonly manifest: SealedManifest;
  readonly authorship: Authorship;
}

const hex = z.string().refine(isHex32, "want 64 hex characters");
const headShape = z.strictObject({
  _type: z.literal(statementType),
  predicateType: z.literal(predicateType),
  predicate: z.strictObject({
    artifactId: hex,
    family: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/),
    identity: identityMapShape,
    model: z.string().max(512),
    environment: z.string().max(512),
    producer: identityMapShape,
    coverage: z.array(z.string().max(256)).max(64),
    createdAt: timeShape,
    expiresAt: timeShape,
    epoch: z.int().min(0),
  }),
});
const statementShape = headShape.extend({
  // Looked at one by one in `fileOf`: a schema takes ten times as long for 20,000.
  subject: z.custom<readonly unknown[]>(Array.isArray, "want a list"),
});

/** The bytes that are signed. @throws RelightError `manifest_invalid` when no verifier would accept them. */
export function encodeStatement({ manifest, authorship }: Statement): Buffer {
  const { artifactId, family, files } = manifest;
  const predicate = {
    ...authorship,
    artifactId,
    family,
    createdAt: timeText(authorship.createdAt),
    expiresAt: timeText(authorship.expiresAt),
  };
  checked(headShape.shape.predicate, predicate);
  const head = canonicalJson({ _type: statementType, predicate: predicate as Json, predicateType });
  // Subjects are spelled here and not by `canonicalJson`: 20,000 files in 10 ms instead of 110 ms (a test
  // holds both against each other).
  const subject = files.map(subjectText).join(",");
  return Buffer.from(`${head.slice(0, -1)},"subject":[${subject}]}`, "utf8");
}

/**
 * A statement from the payload of an envelope whose signatures were looked at. The manifest in it has
 * passed `decodeManifest`.
 * @throws RelightError `manifest_invalid` or `path_unsafe`.
 */
export function decodeStatement(bytes: Buffer): Statement {
  const scanned = scanStatement(bytes.toString("latin1"));
  if (scanned !== null) {
    const json = parseJson(Buffer.from(scanned.head, "latin1"));
    const { predicate } = checked(headShape, json);
    // With subjects that are canonical already, a canonical head makes a canonical statement.
    if (canonicalJson(json as Json) !== scanned.head) invalid("its spelling is not canonical");
    return statementOf(predicate, scanned.files);
  }
  const { subject, predicate } = checked(statementShape, parseJson(bytes));
  checkFileCount(subject.length);
  const statement = statementOf(predicate, subject.map(fileOf));
  if (!encodeStatement(statement).equals(bytes)) invalid("its spelling is not canonical");
  return statement;
}

function checked<Value>(shape: z.ZodType<Value>, json: unknown): Value {
  const result = shape.safeParse(json);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  return invalid(`${issue?.path.join(".") ?? ""}: ${issue?.message ?? "wrong shape"}`);
}

function statementOf(
  predicate: z.infer<typeof headShape>["predicate"],
  files: readonly ManifestFile[],
): Statement {
  const { artifactId, family, createdAt, expiresAt, ...rest } = predicate;
  if (timeMs(expiresAt) <= timeMs(createdAt)) invalid("it expires before it was created");
  const manifest = sealForeign({ family, files });
  if (manifest.artifactId !== artifactId)
    invalid(`its files make artifact ${manifest.artifactId}, it says ${artifactId}`);
  const authorship = { ...rest, createdAt: timeMs(createdAt), expiresAt: timeMs(expiresAt) };
  return { manifest, authorship };
}

/** Seals and signs in one step what an agent publishes. */
export function signStatement(
  { manifest, authorship }: { readonly manifest: Manifest; readonly authorship: Authorship },
  signers: readonly Signer[],
): Envelope {
  const payload = encodeStatement({ manifest: encodeManifest(manifest), authorship });
  return signEnvelope({ payloadType: statementPayloadType, payload }, signers);
}

export function factsOf({ manifest, authorship }: Statement): Facts {
  const { identity, model, environment, createdAt, expiresAt, epoch } = authorship;
  const { artifactId, family } = manifest;
  return {
    artifactId: artifactId as Hex32,
    family,
    identity: { ...identity },
    model,
    environment,
    createdAt,
    expiresAt,
    epoch,
  };
}

export interface Verification {
  readonly policy: Policy | null;
  readonly wanted: Wanted;
  /** Of `TrustKeeper.epochFloor`. */
  readonly epochFloor: number;
  readonly now: number;
}

export interface VerifiedStatement extends Statement {
  readonly facts: Facts;
  readonly verdict: Extract<Verdict, { state: "allowed" }>;
}

/**
 * Everything between an envelope from a stranger and a manifest whose files may be fetched.
 * @throws RelightError with the code of the refusal.
 */
export function verifyStatement(bytes: Buffer, options: Verification): VerifiedStatement {
  const { policy, now } = options;
  const envelope = decodeEnvelope(bytes);
  const unfit = judgePolicy(policy, now);
  if (policy === null || unfit !== null)
    return refuse(options.wanted, unfit ?? { code: "policy_missing", reason: "there is none" });
  if (envelope.payloadType !== statementPayloadType)
    invalid(`its payload type is "${envelope.payloadType}", want ${statementPayloadType}`);
  const evidence = collectEvidence(envelope, policy, now);
  requireProof(evidence, options.wanted);
  const statement = decodeStatement(envelope.payload);
  const facts = factsOf(statement);
  const verdict = decide({ ...options, facts, evidence });
  if (verdict.state === "refused") refuse(options.wanted, verdict);
  return { ...statement, facts, verdict };
}

/** Nobody unknown makes this node parse a statement of 128 MiB. */
function requireProof(evidence: readonly Evidence[], wanted: Wanted): void {
  if (evidence.some(({ state }) => state === "proven")) return;
  const [failed] = evidence.flatMap((each) => (each.state === "refused" ? [each] : []));
  refuse(wanted, failed ?? { code: "signature_missing", reason: "nobody signed it" });
}

function refuse(
  { artifactId }: Wanted,
  { code, reason }: { readonly code: RelightError["code"]; readonly reason: string },
): never {
  throw new RelightError(code, `Cannot install artifact ${artifactId.slice(0, 12)}: ${reason}`, {
    details: { artifact: artifactId },
  });
}

function subjectText({ path, digest, chunks, form, mode, modifiedMs, size }: ManifestFile): string {
  const [algorithm = "", hexDigest = ""] = digest.split(":");
  const list = chunks.length === 0 ? "" : `"${chunks.join('","')}"`;
  const time = modifiedMs === undefined ? "" : `"modifiedMs":${modifiedMs},`;
  const annotations = `{"chunks":[${list}],"form":"${form}","mode":${mode},${time}"size":${size}}`;
  const name = JSON.stringify(path);
  return `{"annotations":${annotations},"digest":{"${algorithm}":"${hexDigest}"},"name":${name}}`;
}

/** @throws RelightError `manifest_invalid` for a value of another shape. */
function fileOf(value: unknown, at: number): ManifestFile {
  const subject = fieldsOf(value, [subjectKeys], at);
  const annotations = fieldsOf(subject["annotations"], annotationKeys, at);
  const digest = fieldsOf(subject["digest"], digestKeys, at);
  const [[algorithm, hexDigest] = []] = Object.entries(digest);
  const { chunks, form, mode, modifiedMs, size } = annotations;
  const stated = `${algorithm}:${String(hexDigest)}`;
  const path = subject["name"];
  const file =
    modifiedMs === undefined
      ? { chunks, digest: stated, form, mode, path, size }
      : { chunks, digest: stated, form, mode, modifiedMs, path, size };
  const problem = fileProblem(file);
  if (problem !== null) invalid(`subject.${at}: ${problem}`);
  return file as ManifestFile;
}

const subjectKeys = ["annotations", "digest", "name"];
const annotationKeys = [
  ["chunks", "form", "mode", "size"],
  ["chunks", "form", "mode", "modifiedMs", "size"],
];
const digestKeys = [["blake3"], ["blake3-chunked"]];

/** The fields of an object that has exactly the keys of one of `forms`, in canonical order. */
function fieldsOf(
  value: unknown,
  forms: readonly (readonly string[])[],
  at: number,
): Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null) return invalid(`subject.${at}: want an object`);
  const keys = Object.keys(value);
  const isForm = forms.some(
    (form) => form.length === keys.length && form.every((key, index) => key === keys[index]),
  );
  if (!isForm)
    invalid(`subject.${at}: want the keys ${forms.map((form) => form.join()).join(" or ")}`);
  return value as Readonly<Record<string, unknown>>;
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new RelightError("manifest_invalid", "Cannot read statement: it is not JSON in UTF-8", {
      cause: asRelightError(cause),
    });
  }
}

function invalid(reason: string): never {
  throw new RelightError("manifest_invalid", `Cannot accept statement: ${reason}`);
}
