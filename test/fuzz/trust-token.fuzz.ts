// SPDX-License-Identifier: Apache-2.0
// Join tokens, enrolment requests and files of bearer tokens: whatever is changed, a token that is
// accepted says what was signed.

import assert from "node:assert/strict";
import { findBearer, readBearerTokens } from "../../src/trust/bearer.ts";
import { readEnrolRequest, writeEnrolRequest } from "../../src/trust/enrol.ts";
import {
  joinTokenShape,
  readJoinToken,
  verifyJoinToken,
  writeJoinToken,
} from "../../src/trust/join-token.ts";
import type { FuzzTarget } from "../support/fuzz.ts";
import { alice, joinTokenOf, now, root } from "../support/trust.ts";

const token = joinTokenOf();
const text = writeJoinToken(token, root);
const request = writeEnrolRequest("node-7", alice, text);
const bearers = Buffer.from(
  `# tokens\nreader worker ${"w".repeat(40)}\noperator admin ${"a".repeat(40)}\n`,
);

export const targets: readonly FuzzTarget[] = [
  {
    name: "readJoinToken()",
    seeds: [text],
    run: (bytes) => {
      const read = readJoinToken(Buffer.from(bytes).toString("latin1"));
      assert.deepEqual(joinTokenShape.parse(read), read);
    },
  },
  {
    name: "verifyJoinToken()",
    seeds: [text],
    run: (bytes) => {
      const input = Buffer.from(bytes).toString("latin1");
      const read = verifyJoinToken(input, { issuers: [root.publicKey], now });
      assert.deepEqual(read, token, "a changed token was accepted");
    },
  },
  {
    name: "readEnrolRequest()",
    seeds: [request],
    run: (bytes) => {
      const { name, key } = readEnrolRequest(Buffer.from(bytes));
      assert.equal(key.keyId, alice.publicKey.keyId);
      assert.equal(name, "node-7", "a changed request was accepted");
    },
  },
  {
    name: "readBearerTokens()",
    seeds: [bearers],
    run: (bytes) => {
      const tokens = readBearerTokens(Buffer.from(bytes));
      assert.equal(findBearer(tokens, ""), null);
      assert.equal(findBearer(tokens, "n".repeat(40)), null);
    },
  },
];
