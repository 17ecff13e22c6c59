// SPDX-License-Identifier: Apache-2.0
// Statements: first as bytes, then with whatever JSON they still are signed by an author, so that the
// checks behind the signature are reached. What is accepted must be what was asked for.

import assert from "node:assert/strict";
import { encodeManifest, type Manifest } from "../../src/artifacts/manifest.ts";
import { unsafePath } from "../../src/artifacts/paths.ts";
import {
  decodeStatement,
  encodeStatement,
  statementPayloadType,
  verifyStatement,
} from "../../src/artifacts/statement.ts";
import { blake3Hex, chunkedDigest, wholeDigest } from "../../src/core/digest.ts";
import { chunkBytes } from "../../src/core/pieces.ts";
import { encodeEnvelope, signEnvelope } from "../../src/trust/envelope.ts";
import type { FuzzTarget } from "../support/fuzz.ts";
import { canonicalBytes } from "../support/signed-json.ts";
import { alice, day, factsOf, now, policyOf } from "../support/trust.ts";

const digests = ["one", "two"].map((text) => blake3Hex(Buffer.from(text)));
const manifest: Manifest = {
  family: "triton",
  files: [
    {
      path: "a.so",
      mode: 0o755,
      size: 3,
      form: "plain",
      digest: wholeDigest(blake3Hex(Buffer.from("abc"))),
      chunks: [],
    },
    {
      path: "b/c.bin",
      mode: 0o644,
      size: chunkBytes + 1,
      form: "plain",
      digest: chunkedDigest(digests),
      chunks: digests,
    },
  ],
};
const sealed = encodeManifest(manifest);
const { identity, model, environment } = factsOf();
const seed = encodeStatement({
  manifest: sealed,
  authorship: {
    identity,
    model,
    environment,
    producer: { replica: "r" },
    coverage: ["health"],
    createdAt: now,
    expiresAt: now + day,
    epoch: 0,
  },
});
const policy = policyOf();
const wanted = { artifactId: sealed.artifactId, family: "triton", identity, model, environment };

export const targets: readonly FuzzTarget[] = [
  {
    name: "decodeStatement()",
    seeds: [seed],
    run: (bytes) => {
      const input = Buffer.from(bytes);
      const statement = decodeStatement(input);
      assert.ok(encodeStatement(statement).equals(input), "another spelling was accepted");
      for (const { path } of statement.manifest.files) assert.equal(unsafePath(path), null);
    },
  },
  {
    name: "verifyStatement() of what an author signed",
    seeds: [seed],
    run: (bytes) => {
      const payload = canonicalBytes(bytes);
      const signed = signEnvelope({ payloadType: statementPayloadType, payload }, [alice]);
      const options = { policy, wanted, epochFloor: 0, now };
      const { manifest: accepted } = verifyStatement(encodeEnvelope(signed), options);
      assert.ok(accepted.bytes.equals(sealed.bytes), "other files were accepted");
    },
  },
];
