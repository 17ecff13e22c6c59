// SPDX-License-Identifier: Apache-2.0
// Certificates: changed in any byte they are refused, or are read and then belong to no chain: only the
// very bytes that the authority signed make one.

import assert from "node:assert/strict";
import {
  readCertificate,
  readCertificatesPem,
  writeCertificatePem,
} from "../../src/trust/certificate.ts";
import { validateChain } from "../../src/trust/chain.ts";
import type { FuzzTarget } from "../support/fuzz.ts";
import { alice, authorityOf, leafOf, now } from "../support/trust.ts";

const fleet = authorityOf();
const issuing = authorityOf({ commonName: "issuing", pathLength: 0, issuer: fleet });
const leaf = leafOf(fleet, alice, { dnsNames: ["a.example.com"], addresses: ["10.0.0.1"] });
const deeper = leafOf(issuing, alice);
const options = { authorities: [fleet.certificate], purpose: "code_signing" as const, now };
const genuine = [leaf, deeper, issuing.certificate.der, fleet.certificate.der];

export const targets: readonly FuzzTarget[] = [
  {
    name: "readCertificate()",
    seeds: genuine,
    run: (bytes) => {
      const certificate = readCertificate(Buffer.from(bytes));
      assert.ok(certificate.der.equals(bytes));
      assert.ok(Number.isFinite(certificate.notBefore) && Number.isFinite(certificate.notAfter));
    },
  },
  {
    name: "validateChain() of a leaf",
    seeds: [leaf],
    run: (bytes) => {
      const { leaf: accepted } = validateChain([Buffer.from(bytes)], options);
      assert.ok(accepted.der.equals(leaf), "a changed leaf was accepted");
    },
  },
  {
    name: "validateChain() of an issuing authority",
    seeds: [issuing.certificate.der],
    run: (bytes) => {
      validateChain([deeper, Buffer.from(bytes)], options);
      assert.ok(issuing.certificate.der.equals(bytes), "a changed authority was accepted");
    },
  },
  {
    name: "readCertificatesPem()",
    seeds: [genuine.map(writeCertificatePem).join("\n")],
    run: (bytes) => {
      const list = readCertificatesPem(Buffer.from(bytes).toString("latin1"));
      assert.deepEqual(readCertificatesPem(list.map(writeCertificatePem).join("")), list);
    },
  },
];
