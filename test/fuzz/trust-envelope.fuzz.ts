// SPDX-License-Identifier: Apache-2.0
// Envelopes from strangers: read or refused, read the same way twice, and never signed by somebody who
// did not sign.

import assert from "node:assert/strict";
import {
  decodeEnvelope,
  encodeEnvelope,
  listSigners,
  signEnvelope,
} from "../../src/trust/envelope.ts";
import type { FuzzTarget } from "../support/fuzz.ts";
import { alice, authorityOf, bob, leafOf } from "../support/trust.ts";

const signed = signEnvelope({ payloadType: "text/plain", payload: Buffer.from("hello") }, [alice]);
const chained = signEnvelope({ payloadType: "text/plain", payload: Buffer.from("hello") }, [
  { ...bob, chain: [leafOf(authorityOf(), bob)] },
  alice,
]);

export const targets: readonly FuzzTarget[] = [
  {
    name: "decodeEnvelope()",
    seeds: [signed, chained, { ...signed, signatures: [] }].map(encodeEnvelope),
    run: (bytes) => {
      const envelope = decodeEnvelope(Buffer.from(bytes), 4_096);
      assert.deepEqual(decodeEnvelope(encodeEnvelope(envelope), 4_096), envelope);
      const signers = listSigners(envelope, [alice.publicKey, bob.publicKey]);
      const { payload, payloadType } = envelope;
      const isOriginal = payload.equals(signed.payload) && payloadType === signed.payloadType;
      assert.ok(signers.length === 0 || isOriginal, "a signature carried over to other bytes");
    },
  },
];
