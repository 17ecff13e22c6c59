// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { AsnConvert, OctetString } from "@peculiar/asn1-schema";
import {
  AlgorithmIdentifier,
  type Certificate as CertificateSchema,
  Extension,
  id_ce_keyUsage,
  KeyUsage,
  KeyUsageFlags,
} from "@peculiar/asn1-x509";
import { alice, authorityOf, day, hour, leafOf, now, reissued } from "../../test/support/trust.ts";
import { readCertificate, readCertificatesPem, writeCertificatePem } from "./certificate.ts";
import { type Purpose, validateChain } from "./chain.ts";
import { generateKey, signerFrom } from "./keys.ts";

const fleet = authorityOf();
const below = authorityOf({ commonName: "issuing", pathLength: 0, issuer: fleet });

function validate(
  chain: Buffer[],
  changes: { at?: number; purpose?: Purpose; pinned?: typeof fleet } = {},
) {
  const { at = now, purpose = "code_signing", pinned = fleet } = changes;
  return validateChain(chain, { authorities: [pinned.certificate], purpose, now: at });
}

function refused(chain: Buffer[], message: RegExp, changes?: Parameters<typeof validate>[1]) {
  assert.throws(() => validate(chain, changes), { code: "certificate_invalid", message });
}

describe("certificate chain", () => {
  test("validateChain() accepts a leaf of the pinned authority, with and without it in the chain", () => {
    const leaf = leafOf(fleet, alice);
    const valid = validate([leaf]);
    assert.equal(valid.leaf.keyId, alice.publicKey.keyId);
    assert.deepEqual(valid.leaf.uris, ["spiffe://fleet/author/warmer"]);
    assert.deepEqual(valid.keyIds, [alice.publicKey.keyId, fleet.certificate.keyId]);
    assert.equal(valid.notAfter, now + day);
    assert.equal(validate([leaf, fleet.certificate.der]).authority, fleet.certificate);
  });

  test("validateChain() accepts one issuing authority between leaf and pinned root", () => {
    const valid = validate([leafOf(below, alice), below.certificate.der]);
    assert.deepEqual(valid.keyIds.slice(1), [below.certificate.keyId, fleet.certificate.keyId]);
  });

  test("validateChain() accepts the pinned authority alone when that is the issuing one", () => {
    assert.equal(validate([leafOf(below, alice)], { pinned: below }).authority, below.certificate);
  });

  test("validateChain() refuses a third authority above the leaf", () => {
    const top = authorityOf({ pathLength: 3 });
    const middle = authorityOf({ commonName: "middle", issuer: top, pathLength: 2 });
    const low = authorityOf({ commonName: "low", issuer: middle, pathLength: 1 });
    const chain = [leafOf(low, alice), low.certificate.der, middle.certificate.der];
    refused(chain, /no pinned authority/, { pinned: top });
  });

  test("validateChain() refuses an issuer that stands deeper than a path length allows", () => {
    const top = authorityOf({ pathLength: 0 });
    const low = authorityOf({ commonName: "low", issuer: top });
    refused([leafOf(low, alice), low.certificate.der], /allows 0 authorities/, { pinned: top });
  });

  test("validateChain() refuses a leaf that issues (CA:FALSE as issuer)", () => {
    const privateKey = generateKey("p256");
    const der = leafOf(fleet, signerFrom(privateKey), { commonName: "impostor" });
    const impostor = { certificate: readCertificate(der), privateKey };
    const forged = leafOf(impostor, alice);
    refused([forged, impostor.certificate.der], /no pinned authority/);
  });

  test("validateChain() refuses an authority's certificate as a leaf", () => {
    refused([below.certificate.der], /the leaf is an authority/);
  });

  test("validateChain() refuses a self-signed certificate and one of another authority of the same name", () => {
    const twin = authorityOf();
    refused([leafOf(twin, alice)], /no pinned authority/);
    refused([leafOf(twin, alice), twin.certificate.der], /no pinned authority/);
    refused([leafOf(fleet, alice)], /no pinned authority/, { pinned: twin });
  });

  test("validateChain() refuses what is over, still to come, or below an authority that is over", () => {
    const leaf = leafOf(fleet, alice);
    refused([leaf], /it ended/, { at: now + 2 * day });
    refused([leaf], /still to come/, { at: now - 2 * hour });
    const short = authorityOf({ notAfter: now + hour });
    const outliving = leafOf(short, alice);
    assert.equal(readCertificate(outliving).notAfter, now + hour);
    refused([outliving], /it ended/, { at: now + 2 * hour, pinned: short });
  });

  test("validateChain() refuses a certificate for another purpose, or for none", () => {
    refused([leafOf(fleet, alice)], /lacks server_auth/, { purpose: "server_auth" });
    refused([leafOf(fleet, alice, { purposes: [] })], /lacks code_signing|not X.509/);
  });

  test("validateChain() refuses no certificate and one with a flipped bit", () => {
    refused([], /there is none/);
    const leaf = leafOf(fleet, alice);
    const last = leaf.length - 1;
    leaf[last] = (leaf[last] ?? 0) ^ 1;
    refused([leaf], /no pinned authority/);
  });

  const oddities: [string, RegExp, (certificate: CertificateSchema) => void][] = [
    [
      "a critical extension that nobody here understands",
      /not understood/,
      ({ tbsCertificate }) => {
        tbsCertificate.extensions?.push(
          new Extension({ extnID: "2.5.29.30", critical: true, extnValue: new OctetString(2) }),
        );
      },
    ],
    [
      "an extension twice",
      /repeats an extension|not X.509/,
      ({ tbsCertificate: { extensions } }) => {
        const [first] = extensions ?? [];
        if (first) extensions?.push(first);
      },
    ],
    [
      "a key usage that forbids signing",
      /forbids signing/,
      ({ tbsCertificate: { extensions } }) => {
        const usage = extensions?.find(({ extnID }) => extnID === id_ce_keyUsage);
        if (usage)
          usage.extnValue = new OctetString(
            AsnConvert.serialize(new KeyUsage(KeyUsageFlags.keyAgreement)),
          );
      },
    ],
    [
      "a signature over SHA-1",
      /signed by algorithm 1.2.840.10045.4.1/,
      (certificate) => {
        const weak = new AlgorithmIdentifier({ algorithm: "1.2.840.10045.4.1" });
        certificate.signatureAlgorithm = weak;
        certificate.tbsCertificate.signature = weak;
      },
    ],
    [
      "two signature algorithms",
      /two signature algorithms/,
      ({ tbsCertificate }) => {
        tbsCertificate.signature = new AlgorithmIdentifier({ algorithm: "1.3.101.112" });
      },
    ],
  ];
  for (const [what, message, change] of oddities) {
    test(`validateChain() refuses a leaf with ${what}`, () => {
      refused([reissued(fleet, leafOf(fleet, alice), change)], message);
    });
  }

  test("validateChain() refuses a below-root authority whose key usage forbids issuing", () => {
    const der = reissued(fleet, below.certificate.der, ({ tbsCertificate: { extensions } }) => {
      const usage = extensions?.find(({ extnID }) => extnID === id_ce_keyUsage);
      if (usage)
        usage.extnValue = new OctetString(
          AsnConvert.serialize(new KeyUsage(KeyUsageFlags.cRLSign)),
        );
    });
    const lesser = { ...below, certificate: readCertificate(der) };
    refused([leafOf(lesser, alice), der], /forbids issuing|no pinned authority/);
  });

  test("readCertificate() refuses bytes after the certificate and too many bytes", () => {
    const leaf = leafOf(fleet, alice);
    for (const bytes of [
      Buffer.concat([leaf, Buffer.of(0)]),
      leaf.subarray(0, -1),
      Buffer.alloc(16_385),
    ])
      assert.throws(() => readCertificate(bytes), { code: "certificate_invalid" });
  });

  test("readCertificatesPem() reads back what writeCertificatePem() wrote, in order", () => {
    const list = [leafOf(fleet, alice), fleet.certificate.der];
    assert.deepEqual(readCertificatesPem(list.map(writeCertificatePem).join("\n")), list);
    assert.throws(() => readCertificatesPem("nothing"), { code: "certificate_invalid" });
  });

  test("a chain made here satisfies OpenSSL's own idea of an issuer", () => {
    const { x509 } = readCertificate(leafOf(fleet, alice));
    assert.equal(fleet.certificate.x509.ca, true);
    assert.equal(x509.ca, false);
    assert.equal(x509.checkIssued(fleet.certificate.x509), true);
    assert.match(x509.subjectAltName ?? "", /URI:spiffe:\/\/fleet\/author\/warmer/);
  });
});
