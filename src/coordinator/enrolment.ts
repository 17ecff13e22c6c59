// SPDX-License-Identifier: Apache-2.0
// Gives members of the fleet their certificates: for a join token, which is counted on disk before it
// is honoured, and again to whoever shows a certificate that still counts, for the same key. What is
// asked is read and judged in trust/enrol.ts.

import { randomBytes } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { RelightError } from "../errors.ts";
import { writeWhole } from "../platform/files.ts";
import {
  type EnrolRequest,
  type EnrolResponse,
  EnrolResponseSchema,
} from "../protocol/gen/relight_pb.ts";
import type { Authority } from "../trust/authority.ts";
import { enrolByToken, issueFor, readEnrolRequest } from "../trust/enrol.ts";
import { publicKeyFrom } from "../trust/keys.ts";
import { type EnrolledMember, enrolMember, type Members } from "../trust/members.ts";
import { readMembers, readUses } from "../trust/members-file.ts";
import { coordinatorUri } from "../trust/tls-material.ts";
import type { TokenUses } from "../trust/token-uses.ts";
import { type Admitted, mustBeAllowed } from "./access.ts";

export interface EnrolmentSettings {
  readonly authority: Authority;
  readonly trustDomain: string;
  /** Where uses of tokens are kept. */
  readonly usesFile: string;
  /** Where it is kept who has which name. */
  readonly membersFile: string;
  /** The fleet's policy in its envelope; null when there is none. */
  readonly policy: () => Buffer | null;
  /** How long a renewed certificate counts. */
  readonly lifetimeMs: number;
  readonly now: () => number;
}

export class EnrolmentService {
  readonly #settings: EnrolmentSettings;
  readonly #isRevoked: (keyId: string) => boolean;
  #uses: TokenUses;
  #members: Members;

  /**
   * @param isRevoked by the policy in force
   * @throws RelightError `store_corrupt` when the uses cannot be read: a token must not count anew.
   */
  constructor(settings: EnrolmentSettings, isRevoked: (keyId: string) => boolean) {
    this.#settings = settings;
    this.#isRevoked = isRevoked;
    this.#uses = readUses(settings.usesFile);
    this.#members = readMembers(settings.membersFile);
  }

  /**
   * @throws RelightError `token_invalid`, `signature_invalid`, `request_invalid`, `role_denied`,
   *   `certificate_revoked`, `conflict`.
   */
  async enrol(
    { envelope }: EnrolRequest,
    _signal: AbortSignal,
    by: Admitted | null,
  ): Promise<EnrolResponse> {
    const { authority, trustDomain, now: clock, policy } = this.#settings;
    const request = readEnrolRequest(Buffer.from(envelope));
    const { name, key } = request;
    const now = clock();
    // Otherwise its certificate would make somebody the coordinator.
    if (coordinatorUri(trustDomain).endsWith(`/${name}`)) deny(name, "the name is taken");
    if (this.#isRevoked(key.keyId)) {
      throw new RelightError("certificate_revoked", `Cannot enrol "${name}": its key is revoked`);
    }
    const fleet = { authority, trustDomain, serial: randomBytes(16), now };
    const given = { authorities: [authority.certificate.der], policy: policy() ?? Buffer.alloc(0) };
    if (by !== null && request.token === "") {
      mustBeAllowed(by.caller, "certificate.renew", name);
      // Or whoever stole a key for a moment would stay with another when the first is revoked.
      if (by.keyId !== key.keyId) deny(name, "a certificate is renewed for its own key only");
      const { lifetimeMs } = this.#settings;
      const notAfter = now + lifetimeMs;
      const { caller } = by;
      this.#remember({ ...caller, keyId: key.keyId, notAfter, mayReplace: true }, now);
      const certificate = issueFor(caller, key, { ...fleet, lifetimeMs });
      return create(EnrolResponseSchema, { ...given, certificate });
    }
    const issuers = [publicKeyFrom(authority.certificate.key)];
    const enrolled = enrolByToken(request, { ...fleet, issuers, uses: this.#uses });
    const { caller, certificate, environment, uses, lifetimeMs, isNamed: mayReplace } = enrolled;
    this.#remember({ ...caller, keyId: key.keyId, notAfter: now + lifetimeMs, mayReplace }, now);
    // Before the certificate leaves: a crash must not give the token one more use.
    writeWhole(this.#settings.usesFile, JSON.stringify(Object.fromEntries(uses)));
    this.#uses = uses;
    return create(EnrolResponseSchema, { ...given, certificate, environment });
  }

  #remember(
    member: EnrolledMember & { readonly keyId: string; readonly mayReplace: boolean },
    now: number,
  ): void {
    const members = enrolMember(this.#members, member, { now, isRevoked: this.#isRevoked });
    writeWhole(this.#settings.membersFile, JSON.stringify(Object.fromEntries(members)));
    this.#members = members;
  }
}

function deny(name: string, reason: string): never {
  throw new RelightError("role_denied", `Cannot enrol "${name}": ${reason}`);
}
