// SPDX-License-Identifier: Apache-2.0
// Gives members of the fleet their certificates: for a join token, which is counted on disk before it
// is honoured, and again to whoever shows a certificate that still counts. What is asked is read and
// judged in trust/enrol.ts.

import { randomBytes } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { z } from "zod";
import { RelightError } from "../errors.ts";
import { readSmall, writeWhole } from "../platform/files.ts";
import {
  type EnrolRequest,
  type EnrolResponse,
  EnrolResponseSchema,
} from "../protocol/gen/relight_pb.ts";
import type { Authority } from "../trust/authority.ts";
import { enrolByToken, issueFor, readEnrolRequest } from "../trust/enrol.ts";
import { publicKeyFrom } from "../trust/keys.ts";
import { coordinatorUri } from "../trust/tls-material.ts";
import type { TokenUses } from "../trust/token-uses.ts";
import { type Admitted, mustBeAllowed } from "./access.ts";

export interface EnrolmentSettings {
  readonly authority: Authority;
  readonly trustDomain: string;
  /** Where uses of tokens are kept. */
  readonly usesFile: string;
  /** The fleet's policy in its envelope; null when there is none. */
  readonly policy: () => Buffer | null;
  /** How long a renewed certificate counts. */
  readonly lifetimeMs: number;
  readonly now: () => number;
}

const usesBytesMax = 16 * 1024 * 1024;
const usesShape = z.record(
  z.string().regex(/^[0-9a-f]{32}$/),
  z.strictObject({ used: z.int().min(1), expiresAt: z.int().min(0) }),
);

export class EnrolmentService {
  readonly #settings: EnrolmentSettings;
  #uses: TokenUses;

  /** @throws RelightError `store_corrupt` when the uses cannot be read: a token must not count anew. */
  constructor(settings: EnrolmentSettings) {
    this.#settings = settings;
    this.#uses = readUses(settings.usesFile);
  }

  /** @throws RelightError `token_invalid`, `signature_invalid`, `request_invalid`, `role_denied`. */
  async enrol(
    { envelope }: EnrolRequest,
    _signal: AbortSignal,
    by: Admitted | null,
  ): Promise<EnrolResponse> {
    const { authority, trustDomain, now: clock, policy } = this.#settings;
    const request = readEnrolRequest(Buffer.from(envelope));
    const now = clock();
    // Otherwise its certificate would make somebody the coordinator.
    if (coordinatorUri(trustDomain).endsWith(`/${request.name}`))
      throw new RelightError("role_denied", `Cannot enrol "${request.name}": the name is taken`);
    const fleet = { authority, trustDomain, serial: randomBytes(16), now };
    const given = { authorities: [authority.certificate.der], policy: policy() ?? Buffer.alloc(0) };
    if (by !== null && request.token === "") {
      mustBeAllowed(by.caller, "certificate.renew", request.name);
      const { lifetimeMs } = this.#settings;
      const certificate = issueFor(by.caller, request.key, { ...fleet, lifetimeMs });
      return create(EnrolResponseSchema, { ...given, certificate });
    }
    const issuers = [publicKeyFrom(authority.certificate.key)];
    const enrolled = enrolByToken(request, { ...fleet, issuers, uses: this.#uses });
    // Before the certificate leaves: a crash must not give the token one more use.
    writeWhole(this.#settings.usesFile, JSON.stringify(Object.fromEntries(enrolled.uses)));
    this.#uses = enrolled.uses;
    const { certificate, environment } = enrolled;
    return create(EnrolResponseSchema, { ...given, certificate, environment });
  }
}

function readUses(file: string): TokenUses {
  const bytes = readSmall(file, usesBytesMax);
  if (bytes === null) return new Map();
  try {
    return new Map(Object.entries(usesShape.parse(JSON.parse(bytes.toString("utf8")))));
  } catch (cause) {
    throw new RelightError("store_corrupt", `Cannot read uses of tokens from "${file}"`, { cause });
  }
}
