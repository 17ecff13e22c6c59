// SPDX-License-Identifier: Apache-2.0
// What this agent shows of itself in TLS: files that somebody else rotates, or a certificate that it
// got for a join token and renews by itself. Replicas of one node share it, under the node's lock.

import path from "node:path";
import { RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import { readSmall, writeWhole } from "../platform/files.ts";
import { claimNodeLock } from "../platform/node-lock.ts";
import { readPrivate } from "../platform/private-file.ts";
import type { EnrolResponse } from "../protocol/gen/relight_pb.ts";
import {
  invalidCertificate,
  readCertificate,
  readCertificatesPem,
  writeCertificatePem,
} from "../trust/certificate.ts";
import { writeEnrolRequest } from "../trust/enrol.ts";
import { decodeEnvelope, listSigners } from "../trust/envelope.ts";
import { type JoinToken, readJoinToken } from "../trust/join-token.ts";
import { loadOrCreateKey } from "../trust/key-file.ts";
import { readPublicKey } from "../trust/keys.ts";
import { policyBytesMax } from "../trust/policy.ts";
import { memberOf, readTlsMaterial, type TlsMaterial, tlsIdentity } from "../trust/tls-material.ts";
import { openTlsFiles, type TlsFileNames, type TlsSource } from "../trust/tls-source.ts";
import { askAsMember, askAsStranger } from "./enrol-call.ts";

export interface MembershipSettings {
  /** Brought by the operator; null when the agent enrols or belongs to no fleet. */
  readonly files: TlsFileNames | null;
  /** Null without one. */
  readonly join: string | null;
}

export interface Membership {
  /** Null for an agent of one machine. Its material can be had once `isMember`. */
  readonly source: (TlsSource & { readonly isMember: boolean }) | null;
  /** host:port. */
  readonly coordinator: string;
  /** Uses the token; does nothing for who has joined. @throws RelightError why there is no certificate. */
  join(signal: AbortSignal): Promise<void>;
}

interface Surroundings {
  readonly nodeId: string;
  /** Where key and certificate are kept. */
  readonly folder: string;
  readonly policyFile: string;
  /** host:port, unless the token says another. */
  readonly coordinator: string;
  readonly timeoutMs: number;
  readonly clock: Clock;
}

/** Name of the key that this node's certificate is for, in the trust folder. */
export const memberKeyName = "member-key.pem";
const pemBytesMax = 256 * 1024;

/** Calls nobody. @throws RelightError `config_invalid`, `token_invalid`, `certificate_invalid`, `key_unsafe`. */
export function openMembership(
  settings: MembershipSettings,
  surroundings: Surroundings,
): Membership {
  const { files, join: text } = settings;
  const { coordinator: address } = surroundings;
  if (files !== null) {
    const opened = openTlsFiles(files);
    const source = {
      get material() {
        return opened.material;
      },
      refresh: (signal: AbortSignal) => opened.refresh(signal),
      isMember: true,
    };
    return { source, coordinator: address, join: async () => {} };
  }
  const token = text === null ? null : readJoinToken(text);
  const coordinator = token?.coordinator ?? address;
  const enrolled = new Enrolled({ ...surroundings, coordinator });
  const source = token === null && !enrolled.wasMember ? null : enrolled;
  const join = async (signal: AbortSignal) => {
    if (text !== null && token !== null) await enrolled.join(text, token, signal);
    // Whoever belonged to a fleet is not taken for one that never did: it would speak plaintext.
    else if (source?.isMember === false) invalidCertificate("it has ended, join with a new token");
  };
  return { source, coordinator, join };
}

class Enrolled implements TlsSource {
  readonly #options: Surroundings;
  #material: TlsMaterial | null;
  #renewAtMs = Number.POSITIVE_INFINITY;

  constructor(options: Surroundings) {
    this.#options = options;
    this.#material = this.#read();
  }

  get isMember(): boolean {
    return this.#material !== null;
  }

  /** Also when the certificate has ended. */
  get wasMember(): boolean {
    return this.isMember || readSmall(this.#file("member.pem"), pemBytesMax) !== null;
  }

  get material(): TlsMaterial {
    if (this.#material !== null) return this.#material;
    throw new RelightError("unauthenticated", "Cannot prove who we are: not enrolled");
  }

  /** Does nothing on a node that has joined already: the token's use is left to another. */
  async join(text: string, token: JoinToken, signal: AbortSignal): Promise<void> {
    await this.#inTurn(signal, async () => {
      if (this.isMember) return;
      const answer = await askAsStranger(this.#ask(text), token.authority);
      mustBelieve(answer.authorities, [token.authority]);
      const policy = Buffer.from(answer.policy);
      mustBeSigned(policy, token);
      this.#keep(answer);
      this.#keepPolicy(policy);
    });
  }

  async refresh(signal: AbortSignal): Promise<boolean> {
    if (this.#options.clock.wallMs() < this.#renewAtMs) return false;
    await this.#inTurn(signal, async () => {
      // Another replica of this node may have renewed it meanwhile.
      if (this.#options.clock.wallMs() < this.#renewAtMs) return;
      const answer = await askAsMember(this.#ask(""), this.material);
      const believed = this.material.authorities.map((der) => fingerprintOf(der));
      mustBelieve(answer.authorities, believed);
      this.#keep(answer);
    });
    return true;
  }

  async #inTurn(signal: AbortSignal, work: () => Promise<void>): Promise<void> {
    const { clock } = this.#options;
    using _lock = await claimNodeLock(this.#file("member.lock"), { clock, signal });
    this.#material = this.#read();
    await work();
  }

  #ask(token: string) {
    const { coordinator: address, timeoutMs, nodeId } = this.#options;
    const signer = loadOrCreateKey(this.#file(memberKeyName), "p256");
    return { address, timeoutMs, envelope: writeEnrolRequest(nodeId, signer, token) };
  }

  #keep({ certificate, authorities }: EnrolResponse): void {
    // Judged before it replaces what we have, by the rules that our peers go by.
    const key = this.#keyBytes();
    const own = writeCertificatePem(Buffer.from(certificate));
    const believed = authorities.map((der) => writeCertificatePem(Buffer.from(der))).join("");
    const material = readTlsMaterial({
      key: key ?? Buffer.alloc(0),
      certificate: Buffer.from(own),
      authority: Buffer.from(believed),
    });
    memberOf(tlsIdentity(material), this.#options.clock.wallMs());
    // One file, so that a reader never sees one's certificate with another's authorities.
    writeWhole(this.#file("member.pem"), `${own}${believed}`);
    this.#material = this.#read();
  }

  /** Null when there is none, or when it has ended: then a token is needed again. */
  #read(): TlsMaterial | null {
    const key = this.#keyBytes();
    const text = readSmall(this.#file("member.pem"), pemBytesMax);
    if (key === null || text === null) return null;
    const [own, ...believed] = readCertificatesPem(text.toString("latin1"));
    const leaf = readCertificate(own ?? Buffer.alloc(0));
    const now = this.#options.clock.wallMs();
    if (now > leaf.notAfter) return null;
    this.#renewAtMs = leaf.notBefore + ((leaf.notAfter - leaf.notBefore) * 2) / 3;
    return readTlsMaterial({
      key,
      certificate: Buffer.from(writeCertificatePem(leaf.der)),
      authority: Buffer.from(believed.map(writeCertificatePem).join("")),
    });
  }

  /** The first policy of a node that has none. */
  #keepPolicy(envelope: Buffer): void {
    const { policyFile } = this.#options;
    if (envelope.length === 0 || readSmall(policyFile, 2 * policyBytesMax) !== null) return;
    writeWhole(policyFile, envelope);
  }

  #keyBytes(): Buffer | null {
    return readPrivate(this.#file(memberKeyName), pemBytesMax);
  }

  #file(name: string): string {
    return path.join(this.#options.folder, name);
  }
}

/** Whom we believe is not the coordinator's to say: the token said it, or the certificate that we have. */
function mustBelieve(authorities: readonly Uint8Array[], wanted: readonly string[]): void {
  const shown = authorities.map((der) => fingerprintOf(der));
  if (shown.length > 0 && shown.every((fingerprint) => wanted.includes(fingerprint))) return;
  throw new RelightError(
    "certificate_invalid",
    "Cannot enrol: the coordinator names other authorities than this node knows",
  );
}

/** @throws RelightError `policy_invalid` unless the roots that the token names signed it; none is none. */
function mustBeSigned(envelope: Buffer, { roots }: JoinToken): void {
  if (envelope.length === 0) return;
  const keys = roots.keys.map(readPublicKey);
  const signers = listSigners(decodeEnvelope(envelope, policyBytesMax), keys);
  if (signers.length >= roots.threshold) return;
  throw new RelightError(
    "policy_invalid",
    "Cannot join: the roots that the token names did not sign the coordinator's policy",
  );
}

function fingerprintOf(der: Uint8Array): string {
  return readCertificate(Buffer.from(der)).fingerprint;
}
