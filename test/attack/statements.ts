// SPDX-License-Identifier: Apache-2.0
// The attacks that one start of a target meets all at once, each in a cache of its own: what the hostile
// source serves, and with which code it must be refused.

import { collisionKey } from "../../src/artifacts/paths.ts";
import type { Code } from "../../src/errors.ts";
import { addSignature, type Envelope } from "../../src/trust/envelope.ts";
import { signPolicy } from "../../src/trust/setup.ts";
import {
  answerWith,
  authorshipFor,
  type Forged,
  honestFiles,
  honestSource,
  type Keys,
  manifestOf,
  policyFor,
  sourceOf,
  statementFor,
} from "./forge.ts";
import type { HostileSource } from "./plan.ts";

export interface Attack {
  /** Also the cache's. */
  readonly name: string;
  readonly code: Code;
  readonly sources: readonly HostileSource[];
}

const day = 86_400_000;

export function statementAttacks(keys: Keys): readonly Attack[] {
  return [
    ...signatureAttacks(keys),
    ...scopeAttacks(keys),
    ...contentAttacks(keys),
    ...wireAttacks(keys),
  ];
}

/** Its artifact stands in the policy's list of revoked ones. */
export function revokedArtifact(keys: Keys): Attack {
  return one("artifact-revoked", "artifact_revoked", (name) => honestSource(name, [keys.author]));
}

function signatureAttacks(keys: Keys): Attack[] {
  const { author, mallory, revoked, witness } = keys;
  return [
    one("no-statement", "source_gone", (name) =>
      sourceOf(name, honestFiles(name), { statement: { kind: "missing" } }),
    ),
    one("no-signature", "signature_missing", (name) => honestSource(name, [])),
    one("flipped-statement", "signature_invalid", (name) =>
      altered(name, [author], (envelope) => ({ ...envelope, payload: flipped(envelope.payload) })),
    ),
    one("flipped-signature", "signature_invalid", (name) =>
      altered(name, [author], (envelope) => ({
        ...envelope,
        signatures: envelope.signatures.map((each) => ({ ...each, bytes: flipped(each.bytes) })),
      })),
    ),
    one("swapped-signer", "signature_invalid", (name) =>
      altered(name, [mallory], (envelope) => ({
        ...envelope,
        signatures: envelope.signatures.map((each) => ({
          ...each,
          keyId: author.publicKey.keyId,
        })),
      })),
    ),
    one("path-moved-under-old-signature", "signature_invalid", (name) =>
      altered(name, [author], (envelope) => ({
        ...envelope,
        payload: Buffer.from(envelope.payload.toString().replace("k/kernel.bin", "k/libcuda.so")),
      })),
    ),
    one("payload-type-swapped", "signature_invalid", (name) =>
      altered(name, [author], (envelope) => {
        const signed = { ...envelope, payloadType: "text/plain", signatures: [] };
        const [signature] = addSignature(signed, author).signatures;
        return { ...envelope, signatures: signature === undefined ? [] : [signature] };
      }),
    ),
    one("key-outside-the-policy", "signer_unknown", (name) => honestSource(name, [mallory])),
    one("key-revoked", "signer_revoked", (name) => honestSource(name, [revoked])),
    one("one-witness-of-two", "threshold_unmet", (name) => honestSource(name, [witness])),
    one("one-witness-twice", "envelope_invalid", (name) =>
      altered(name, [witness], (envelope) => ({
        ...envelope,
        signatures: [...envelope.signatures, ...envelope.signatures],
      })),
    ),
    one("seventeen-signatures", "envelope_invalid", (name) =>
      altered(name, [author], (envelope) => ({
        ...envelope,
        signatures: Array.from({ length: 17 }, (_, index) => ({
          keyId: index.toString(16).padStart(64, "0") as Envelope["signatures"][number]["keyId"],
          bytes: Buffer.alloc(64),
          chain: [],
        })),
      })),
    ),
    one("policy-in-a-statements-place", "manifest_invalid", (name) => {
      const base64 = signPolicy(policyFor(keys), [keys.root]).toString("base64");
      return sourceOf(name, honestFiles(name), { statement: { kind: "bytes", base64 } });
    }),
    one("not-json", "envelope_invalid", (name) =>
      sourceOf(name, honestFiles(name), {
        statement: { kind: "bytes", base64: Buffer.from("\u0000{").toString("base64") },
      }),
    ),
  ];
}

function scopeAttacks(keys: Keys): Attack[] {
  const { author, otherFamily, otherModel, otherPlace } = keys;
  const now = Date.now();
  const changed = (name: string, code: Code, changes: Parameters<typeof authorshipFor>[1]) =>
    one(name, code, (family) => honestSource(family, [author], changes));
  return [
    one("key-of-another-family", "signer_unknown", (name) => honestSource(name, [otherFamily])),
    one("key-of-another-model", "signer_unknown", (name) => honestSource(name, [otherModel])),
    one("key-of-another-environment", "signer_unknown", (name) => honestSource(name, [otherPlace])),
    changed("statement-for-another-model", "statement_mismatch", { model: "other/model" }),
    changed("statement-for-another-environment", "statement_mismatch", { environment: "staging" }),
    changed("statement-for-another-identity", "statement_mismatch", { identity: { torch: "1.0" } }),
    changed("expired", "statement_expired", { createdAt: now - 2 * day, expiresAt: now - day }),
    changed("from-the-future", "statement_expired", {
      createdAt: now + day,
      expiresAt: now + 2 * day,
    }),
    changed("old-epoch", "statement_replayed", { epoch: 2 }),
    changed("before-the-cut-off", "statement_replayed", { createdAt: now - 25 * day }),
    one("statement-of-another-family", "statement_mismatch", (name) => {
      const files = honestFiles(name);
      const other = manifestOf("triton", files);
      const envelope = statementFor(other, authorshipFor(name), [author]);
      return sourceOf(name, files, { statement: answerWith(envelope) });
    }),
    one("another-artifact", "statement_mismatch", (name) => {
      const other = manifestOf(name, honestFiles("something else"));
      const envelope = statementFor(other, authorshipFor(name), [author]);
      return sourceOf(name, honestFiles(name), { statement: answerWith(envelope) });
    }),
  ];
}

/** An author's own key, stolen or careless: what no signature makes right. */
function contentAttacks({ author }: Keys): Attack[] {
  const signed = (name: string, code: Code, files: readonly Forged[]) =>
    one(name, code, (family) => honestSource(family, [author], {}, files));
  const bytes = Buffer.from("x");
  const group = (target: string) => Buffer.from(JSON.stringify({ child_paths: { a: target } }));
  return [
    signed("path-climbs", "path_unsafe", [{ path: "../../climbed", bytes }]),
    signed("path-climbs-inside", "path_unsafe", [{ path: "k/../../climbed", bytes }]),
    signed("path-absolute", "path_unsafe", [{ path: "/tmp/relight-attack", bytes }]),
    signed("path-with-backslash", "path_unsafe", [{ path: "k\\..\\climbed", bytes }]),
    signed("path-with-nul", "path_unsafe", [{ path: "k/a\u0000.so", bytes }]),
    signed("path-in-relights-folder", "path_unsafe", [{ path: ".relight/receipts/x.json", bytes }]),
    signed("path-in-relights-folder-by-case", "path_unsafe", [{ path: ".RELIGHT/x", bytes }]),
    signed("path-not-normalised", "path_unsafe", [{ path: "k/e\u0301", bytes }]),
    signed("paths-that-collide", "manifest_invalid", [
      { path: "K/kernel.bin", bytes },
      { path: collisionKey("K/kernel.bin"), bytes },
    ]),
    signed("file-in-a-folders-place", "manifest_invalid", [
      { path: "k", bytes },
      { path: "k/kernel.bin", bytes },
    ]),
    signed("path-of-a-thousand-names", "path_unsafe", [{ path: `${"a/".repeat(1_000)}b`, bytes }]),
    signed("setuid", "manifest_invalid", [{ path: "k/kernel.bin", bytes, mode: 0o4755 }]),
    signed("group-names-a-system-file", "path_unsafe", [
      { path: "k/__grp__k.json", bytes: group("/etc/passwd"), form: "rooted" },
    ]),
    signed("group-climbs-out", "path_unsafe", [
      { path: "k/__grp__k.json", bytes: group("relight-root:/../x"), form: "rooted" },
    ]),
    signed("group-names-no-member", "path_unsafe", [
      { path: "k/__grp__k.json", bytes: group("relight-root:/k/other.so"), form: "rooted" },
    ]),
    signed("script-named-so", "structure_invalid", [
      { path: "k/kernel.so", bytes: Buffer.from("#!/bin/sh\n") },
    ]),
    signed("json-that-is-none", "structure_invalid", [{ path: "k/kernel.json", bytes }]),
    one("chunks-without-a-file", "manifest_invalid", (name) => {
      const manifest = manifestOf(name, honestFiles(name));
      const envelope = statementFor(manifest, authorshipFor(name), [author], (statement) => {
        const [subject] = statement["subject"] as { annotations: { size: number } }[];
        if (subject !== undefined) subject.annotations.size = 2 ** 35;
      });
      return sourceOf(name, honestFiles(name), { statement: answerWith(envelope), manifest });
    }),
    one("unknown-field", "manifest_invalid", (name) => {
      const manifest = manifestOf(name, honestFiles(name));
      const envelope = statementFor(manifest, authorshipFor(name), [author], (statement) => {
        statement["postinstall"] = "sh";
      });
      return sourceOf(name, honestFiles(name), { statement: answerWith(envelope), manifest });
    }),
  ];
}

function wireAttacks({ author }: Keys): Attack[] {
  const pieces = (name: string, code: Code, change: (source: HostileSource) => HostileSource) =>
    one(name, code, (family) => change(honestSource(family, [author])));
  const answering = (
    name: string,
    code: Code,
    kind: "drip" | "endless_head" | "chunked" | "silent",
  ) => one(name, code, (family) => sourceOf(family, honestFiles(family), { statement: { kind } }));
  return [
    pieces("flipped-byte", "digest_mismatch", (source) => ({
      ...source,
      pieces: source.pieces.map((piece) =>
        flipped(Buffer.from(piece, "base64")).toString("base64"),
      ),
    })),
    pieces("pieces-exchanged", "source_protocol", (source) => ({
      ...source,
      pieces: source.pieces.toReversed(),
    })),
    pieces("pieces-mislabelled", "source_protocol", (source) => ({
      ...source,
      isMislabelled: true,
    })),
    one("manifest-of-ten-million-entries", "source_protocol", (name) =>
      sourceOf(name, honestFiles(name), { statement: { kind: "huge", bytes: 10_000_000 * 180 } }),
    ),
    one("two-lengths", "source_protocol", (name) => {
      const { statement } = honestSource(name, [author]);
      const base64 = statement.kind === "bytes" ? statement.base64 : "";
      return sourceOf(name, honestFiles(name), { statement: { kind: "extra_body", base64 } });
    }),
    answering("endless-body", "source_protocol", "chunked"),
    answering("endless-head", "source_protocol", "endless_head"),
    answering("slow-drip", "source_stalled", "drip"),
    answering("silence", "source_stalled", "silent"),
  ];
}

function one(name: string, code: Code, source: (family: string) => HostileSource): Attack {
  return { name, code, sources: [source(name)] };
}

function altered(
  name: string,
  signers: Parameters<typeof honestSource>[1],
  change: (envelope: Envelope) => Envelope,
): HostileSource {
  const files = honestFiles(name);
  const manifest = manifestOf(name, files);
  const envelope = statementFor(manifest, authorshipFor(name), signers);
  return sourceOf(name, files, { manifest, statement: answerWith(change(envelope)) });
}

function flipped(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  const middle = copy.length >> 1;
  copy[middle] = (copy[middle] ?? 0) ^ 1;
  return copy;
}
