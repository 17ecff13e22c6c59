// SPDX-License-Identifier: Apache-2.0
// Attacks by whoever pretends to be the fleet's coordinator or one of its sources behind TLS, towards
// nodes that belong to the fleet and towards one that is about to join: certificates that prove nothing,
// and an enrolment that gives what it must not.

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import type { Code } from "../../src/errors.ts";
import type { Authority, Leaf } from "../../src/trust/authority.ts";
import { readCertificate, writeCertificatePem } from "../../src/trust/certificate.ts";
import { type JoinToken, writeJoinToken } from "../../src/trust/join-token.ts";
import { loadOrCreateKey } from "../../src/trust/key-file.ts";
import {
  generateKey,
  privateKeyPem,
  type Signer,
  signerFrom,
  writePublicKey,
} from "../../src/trust/keys.ts";
import { signPolicy } from "../../src/trust/setup.ts";
import { timeText } from "../../src/trust/time.ts";
import { coordinatorUri, type TlsMaterial } from "../../src/trust/tls-material.ts";
import { day, hour, joinTokenOf, leafOf, liveFleet } from "../support/trust.ts";
import { honestSource, type Keys, listedAs, makeKeys, policyFor } from "./forge.ts";
import type { CoordinatorPlan, Shown } from "./plan.ts";
import type { StateAttack } from "./states.ts";
import type { Arena } from "./suite.ts";
import { judge, type Target } from "./target.ts";

type Fleet = ReturnType<typeof liveFleet>;
const coordinator = coordinatorUri("fleet");

export const impostorAttacks: readonly StateAttack[] = [
  impostor("coordinator-under-another-authority", true, () =>
    shownOf(liveFleet().member(coordinator)),
  ),
  impostor("coordinator-that-is-a-member", false, ({ member }) =>
    shownOf(member("spiffe://fleet/author/node-a")),
  ),
  impostor("coordinator-that-is-another-operator", false, ({ member }) =>
    shownOf(member("spiffe://fleet/operator/root")),
  ),
  impostor("coordinator-of-another-trust-domain", false, ({ member }) =>
    shownOf(member(coordinatorUri("other"))),
  ),
  impostor("coordinator-whose-certificate-has-ended", false, ({ member }) =>
    shownOf(member(coordinator, { notBefore: Date.now() - day, notAfter: Date.now() - hour })),
  ),
  impostor("coordinator-whose-certificate-is-a-clients", false, ({ member }) =>
    shownOf(member(coordinator, { purposes: ["client_auth"] })),
  ),
  impostor("coordinator-issued-by-a-member", false, (fleet) => issuedByAMember(fleet)),
  impostor("coordinator-in-plaintext", false, () => null),
  source("source-that-is-another-member", "certificate_invalid", {
    proves: "spiffe://fleet/author/node-b",
    expected: "spiffe://fleet/author/node-a",
  }),
  source("source-that-is-whom-the-coordinator-names", "signer_unknown", {
    proves: "spiffe://fleet/author/node-b",
    expected: "spiffe://fleet/author/node-b",
  }),
  source("source-in-plaintext-of-a-fleet", "source_unreachable", { proves: null, expected: "" }),
  joining("join-shown-another-authority", "certificate_invalid", true, () => ({
    tls: shownOf(liveFleet().member(coordinator)),
  })),
  joining(
    "join-shown-the-authority-beside-a-foreign-leaf",
    "coordinator_unreachable",
    false,
    ({ authority }) => {
      const foreign = liveFleet().member(coordinator);
      return { tls: shownOf({ ...foreign, chain: [...foreign.chain, authority.certificate.der] }) };
    },
  ),
  joining("join-met-by-a-member", "coordinator_unreachable", false, ({ member, authority }) => {
    const met = member("spiffe://fleet/author/node-a");
    return { tls: shownOf({ ...met, chain: [...met.chain, authority.certificate.der] }) };
  }),
  joining("join-given-another-keys-certificate", "certificate_invalid", false, (fleet) => ({
    ...genuine(fleet),
    enrol: { ...given(fleet, signerFrom(generateKey("p256"))), policy: "" },
  })),
  joining("join-given-one-more-authority", "certificate_invalid", false, (fleet, { own }) => {
    const enrol = { ...given(fleet, own), policy: "" };
    const more = liveFleet().authority.certificate.der.toString("base64");
    return { ...genuine(fleet), enrol: { ...enrol, authorities: [...enrol.authorities, more] } };
  }),
  joining("join-given-a-strangers-policy", "policy_invalid", false, (fleet, { own, keys }) => {
    const policy = signPolicy(policyFor({ ...keys, root: keys.mallory }), [keys.mallory]);
    const enrol = { ...given(fleet, own), policy: policy.toString("base64") };
    return { ...genuine(fleet), enrol };
  }),
];

/** A coordinator that is not the fleet's: no call reaches it. */
function impostor(
  name: string,
  isQuick: boolean,
  shown: (fleet: Fleet) => Shown | null,
): StateAttack {
  const play = async (arena: Arena) => {
    const [keys, fleet] = [makeKeys(), liveFleet()];
    const { address, called } = await arena.misleads({ tls: shown(fleet) });
    const target = arena.target(name, address);
    target.hands(policyFor(keys), [keys.root]);
    const flags = putMaterial(target, fleet.member("spiffe://fleet/mirror/target"));
    const start = await target.start([name], flags);
    if (called().size > 0) return `it was told ${[...called()].join(", ")}`;
    return judge({ name, code: "coordinator_unreachable" }, start, target);
  };
  return { name, isQuick, play };
}

/** The coordinator is the fleet's and lies about who a source is. */
function source(
  name: string,
  code: Code,
  { proves, expected }: { readonly proves: string | null; readonly expected: string },
): StateAttack {
  const play = async (arena: Arena) => {
    const [keys, fleet] = [makeKeys(), liveFleet()];
    const forged = honestSource(name, [keys.mallory]);
    const shown = proves === null ? null : shownOf(fleet.member(proves));
    const [endpoint = ""] = await arena.serves([forged], shown);
    const listed = [{ ...listedAs(name, forged), endpoint, identity: expected }];
    const { address } = await arena.misleads({ listed, tls: shownOf(fleet.member(coordinator)) });
    const target = arena.target(name, address);
    target.hands(policyFor(keys), [keys.root]);
    const flags = putMaterial(target, fleet.member("spiffe://fleet/mirror/target"));
    return judge({ name, code }, await target.start([name], flags), target);
  };
  return { name, play };
}

/** Whoever answers a node that joins: it gets no token, or the node keeps nothing of what it gives. */
function joining(
  name: string,
  code: Code,
  isQuick: boolean,
  plan: (
    fleet: Fleet,
    target: { readonly keys: Keys; readonly own: Signer },
  ) => Partial<CoordinatorPlan>,
): StateAttack {
  const play = async (arena: Arena) => {
    const [keys, fleet] = [makeKeys(), liveFleet()];
    const { folder } = arena.target(name);
    // The key that the node would make, made for it, so that somebody could certify it.
    const own = loadOrCreateKey(path.join(folder, "trust/member-key.pem"), "p256");
    const told = plan(fleet, { keys, own });
    const { address, called } = await arena.misleads(told);
    const target = arena.target(name, address);
    const start = await target.start([name], [`--join=${joinToken(fleet, keys)}`]);
    const isGenuine = "enrol" in told;
    if (called().has("Enrol") !== isGenuine) return "the token was sent, or was not";
    if (fs.existsSync(path.join(target.folder, "trust/member.pem"))) return "it joined";
    if (!start.output.includes(code)) return `nobody said ${code}`;
    return judge({ name, code: "coordinator_unreachable" }, start, target);
  };
  return { name, isQuick, play };
}

/** What `relight trust token` makes, with something changed. */
export function joinToken(
  { authority }: Fleet,
  { root }: Keys,
  changes: Partial<JoinToken> = {},
): string {
  const now = Date.now();
  const token = joinTokenOf({
    id: randomBytes(16).toString("hex"),
    environment: "default",
    issuedAt: timeText(now - 2 * hour),
    expiresAt: timeText(now + hour),
    coordinator: null,
    authority: authority.certificate.fingerprint,
    roots: { threshold: 1, keys: [writePublicKey(root.publicKey)] },
    ...changes,
  });
  return writeJoinToken(token, signerFrom(authority.privateKey));
}

/** The fleet's own coordinator, in bad hands. */
function genuine({ member, authority }: Fleet): Pick<CoordinatorPlan, "tls"> {
  const own = member(coordinator);
  return { tls: shownOf({ ...own, chain: [...own.chain, authority.certificate.der] }) };
}

function given(
  { authority }: Fleet,
  signer: Signer,
): Pick<NonNullable<CoordinatorPlan["enrol"]>, "certificate" | "authorities"> {
  const leaf = leafOf(authority, signer, {
    ...spanNow(),
    uris: ["spiffe://fleet/author/target"],
    purposes: ["client_auth", "server_auth"],
  });
  return {
    certificate: leaf.toString("base64"),
    authorities: [authority.certificate.der.toString("base64")],
  };
}

/** A member's own certificate in an authority's place: it says CA:FALSE. */
export function issuedByAMember({ authority }: Fleet, uri = coordinator): Shown {
  const key = generateKey("p256");
  const member = leafOf(authority, signerFrom(key), { ...spanNow(), ...bothPurposes });
  const issuer: Authority = { certificate: readCertificate(member), privateKey: key };
  const own = generateKey("p256");
  const leaf = leafOf(issuer, signerFrom(own), {
    ...spanNow(),
    ...bothPurposes,
    uris: [uri],
  });
  const chain = [leaf, member, authority.certificate.der];
  return shownOf({ key: privateKeyPem(own), chain, authorities: [] });
}

const bothPurposes: Pick<Leaf, "purposes"> = { purposes: ["client_auth", "server_auth"] };

function spanNow() {
  return { notBefore: Date.now() - hour, notAfter: Date.now() + hour };
}

export function shownOf({ key, chain }: TlsMaterial): Shown {
  const certificate = chain.map((der) => writeCertificatePem(Buffer.from(der))).join("");
  return { key: Buffer.from(key).toString("latin1"), certificate };
}

/** As an operator's own authority would put its files beside a node. @returns the flags that name them */
export function putMaterial({ folder }: Pick<Target, "folder">, material: TlsMaterial): string[] {
  const { key, certificate } = shownOf(material);
  const authority = shownOf({ ...material, chain: material.authorities }).certificate;
  fs.mkdirSync(folder, { recursive: true });
  return Object.entries({ key, certificate, authority }).map(([name, content]) => {
    const file = path.join(folder, `${name}.pem`);
    fs.writeFileSync(file, content, { mode: 0o600 });
    return `--trust-${name}=${file}`;
  });
}
