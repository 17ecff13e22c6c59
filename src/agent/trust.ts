// SPDX-License-Identifier: Apache-2.0
// What this agent may install and what it may author: asked before the first byte of an artifact is
// fetched, at every start for what was installed before, and before anything is published. The rules
// are trust/decide.ts; this file says what is asked of them.

import type { Facts, Family } from "../artifacts/family.ts";
import { identityOf } from "../artifacts/identity.ts";
import { decodeManifest, manifestLimits, type SealedManifest } from "../artifacts/manifest.ts";
import type { Receipt } from "../artifacts/receipt.ts";
import {
  factsOf,
  signStatement,
  statementBytesMax,
  verifyStatement,
} from "../artifacts/statement.ts";
import { RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import type { PieceFetcher, SourceAddress } from "../transport/transport.ts";
import { decide, judgePolicy, type Refusal, type Wanted } from "../trust/decide.ts";
import { encodeEnvelope } from "../trust/envelope.ts";
import { collectEvidence } from "../trust/evidence.ts";
import type { TrustKeeper } from "../trust/keeper.ts";
import type { Signer } from "../trust/keys.ts";
import type { Policy } from "../trust/policy.ts";
import { makeReceipt, recheckReceipt, type TrustReceipt } from "../trust/receipt.ts";
import { toStatementIdentity } from "./identity-wire.ts";

const dayMs = 86_400_000;
/** Longer than replicas stay away, short enough that what nobody publishes any more runs out. */
const statementLifetimeMs = 30 * dayMs;
const renewBeforeMs = statementLifetimeMs / 2;

export type TrustMode = "closed" | "insecure";

/** One family's artifacts as this replica wants and makes them. */
export interface Subject {
  readonly family: string;
  readonly identity: Readonly<Record<string, string>>;
  /** Empty when the family does not depend on a model. */
  readonly model: string;
}

export interface Granted {
  readonly manifest: SealedManifest;
  /** The author's envelope as it came; not given when nobody was asked to sign. */
  readonly statement?: Buffer;
  readonly trust: TrustReceipt | null;
}

export interface Authored {
  readonly statement: Buffer;
  /** When it is time to sign again, in Unix milliseconds. */
  readonly renewAtMs: number;
}

/** What goes into the boot record. */
export interface TrustSummary {
  readonly mode: TrustMode;
  /** Null without a policy. */
  readonly policyVersion: number | null;
  /** Of the key that this node authors with; null when it has none. */
  readonly keyId: string | null;
}

export interface ArtifactTrust {
  readonly summary: TrustSummary;
  /** Ids of keys that count no more, for signatures and for certificates. */
  readonly revokedKeys: ReadonlySet<string>;
  /** Takes notice of a newer policy. What goes wrong with that is told once, and the present one stays. */
  refresh(signal: AbortSignal): Promise<void>;
  /** A policy that the coordinator carries. @throws RelightError why it is not taken. */
  offer(envelope: Buffer, signal: AbortSignal): Promise<void>;
  /** What a source offers, when it may be installed. @throws RelightError why not, or what the source did. */
  grant(
    asked: { fetcher: PieceFetcher; at: SourceAddress; subject: Subject },
    signal: AbortSignal,
  ): Promise<Granted>;
  /**
   * What was installed on an earlier day, by the envelope that was kept with it: may be handed on again.
   * @throws RelightError why not.
   */
  readmit(statement: Buffer, receipt: Receipt): Granted;
  /** Why what was installed earlier may not be used any more; null when it may. */
  recheck(receipt: Receipt): Refusal | null;
  /** Call when an artifact was installed. */
  remember(trust: TrustReceipt, signal: AbortSignal): Promise<void>;
  /** What to offer an artifact with. @throws RelightError why peers under our own policy would refuse it. */
  author(manifest: SealedManifest, subject: Subject): Authored;
}

export function subjectOf(
  family: Family,
  facts: Facts,
  extra: Readonly<Record<string, string>>,
): Subject {
  return {
    family: family.name,
    identity: toStatementIdentity(identityOf(family, facts, extra)),
    model: family.dependsOn.includes("model") ? facts.model : "",
  };
}

/** Anything that a peer of the same identity offers is installed: digests, paths and structure only. */
export const insecureTrust: ArtifactTrust = {
  summary: { mode: "insecure", policyVersion: null, keyId: null },
  revokedKeys: new Set(),
  refresh: async () => {},
  offer: async () => {},
  grant: async ({ fetcher, at, subject }, signal) => {
    const { bytesMax } = manifestLimits;
    const manifest = decodeManifest(await fetcher.manifest(at, { bytesMax }, signal), at);
    if (manifest.family === subject.family) return { manifest, trust: null };
    throw new RelightError(
      "manifest_invalid",
      `Cannot use manifest: it is of family "${manifest.family}", wanted "${subject.family}"`,
    );
  },
  readmit: () => {
    throw new RelightError("signature_missing", "Cannot relay artifact: nobody was asked to sign");
  },
  recheck: () => null,
  remember: async () => {},
  // Unsigned, so that whoever does ask is told `signature_missing` and not that nothing is here.
  author: (manifest, subject) => ({
    statement: encodeEnvelope(
      signStatement({ manifest, authorship: { ...subject, ...unsignedAuthorship } }, []),
    ),
    renewAtMs: Number.POSITIVE_INFINITY,
  }),
};

export interface TrustOptions {
  readonly keeper: TrustKeeper;
  readonly signer: Signer;
  readonly environment: string;
  /** Who compiled it, for people. */
  readonly producer: Readonly<Record<string, string>>;
  readonly clock: Clock;
  readonly refresh: (signal: AbortSignal) => Promise<void>;
  readonly offer: (envelope: Buffer, signal: AbortSignal) => Promise<void>;
}

/** Only what authors named by the policy signed. */
export class ClosedTrust implements ArtifactTrust {
  readonly #options: TrustOptions;
  /** Envelopes of others for artifacts that are here whole: relayed as they are, never signed again. */
  readonly #received = new Map<string, Buffer>();

  constructor(options: TrustOptions) {
    this.#options = options;
  }

  get summary(): TrustSummary {
    const { keeper, signer } = this.#options;
    const policyVersion = keeper.policy?.version ?? null;
    return { mode: "closed", policyVersion, keyId: signer.publicKey.keyId };
  }

  get revokedKeys(): ReadonlySet<string> {
    return this.#options.keeper.policy?.revokedKeys ?? new Set();
  }

  refresh(signal: AbortSignal): Promise<void> {
    return this.#options.refresh(signal);
  }

  offer(envelope: Buffer, signal: AbortSignal): Promise<void> {
    return this.#options.offer(envelope, signal);
  }

  async grant(
    { fetcher, at, subject }: Parameters<ArtifactTrust["grant"]>[0],
    signal: AbortSignal,
  ): Promise<Granted> {
    const { environment } = this.#options;
    // Under no policy nothing can come of it, so nobody is asked for anything.
    this.#policy();
    const statement = await fetcher.statement(at, { bytesMax: statementBytesMax }, signal);
    const wanted: Wanted = { ...subject, artifactId: at.artifactId, environment };
    return this.#admit(statement, wanted);
  }

  readmit(statement: Buffer, { artifactId, trust }: Receipt): Granted {
    if (trust === null)
      throw new RelightError("signature_missing", "Cannot relay artifact: nobody vouched for it");
    const { family, identity, model } = trust.facts;
    const { environment } = this.#options;
    return this.#admit(statement, { artifactId, family, identity, model, environment });
  }

  #admit(statement: Buffer, wanted: Wanted): Granted {
    const { keeper, clock } = this.#options;
    const { manifest, facts, verdict } = verifyStatement(statement, {
      policy: keeper.policy,
      wanted,
      epochFloor: keeper.epochFloor(wanted),
      now: clock.wallMs(),
    });
    this.#received.set(manifest.artifactId, statement);
    return { manifest, statement, trust: makeReceipt(facts, verdict) };
  }

  /**
   * What the replica is today does not count: one folder serves several models and versions, and each
   * finds its own files there by its own keys.
   */
  recheck({ artifactId, family, trust }: Receipt): Refusal | null {
    if (trust === null)
      return { state: "refused", code: "signature_missing", reason: "nobody vouched for it" };
    const { keeper, clock, environment } = this.#options;
    const { identity, model } = trust.facts;
    const verdict = recheckReceipt(trust, {
      policy: keeper.policy,
      wanted: { artifactId, family, identity, model, environment },
      // It was the newest when it was installed; a later one does not make it wrong.
      epochFloor: 0,
      now: clock.wallMs(),
    });
    return verdict.state === "refused" ? verdict : null;
  }

  async remember({ facts }: TrustReceipt, signal: AbortSignal): Promise<void> {
    await this.#options.keeper.remember(facts, signal);
  }

  author(manifest: SealedManifest, subject: Subject): Authored {
    const received = this.#received.get(manifest.artifactId);
    return received === undefined
      ? this.#sign(manifest, subject)
      : this.#relay(received, manifest, subject);
  }

  #relay(statement: Buffer, { artifactId }: SealedManifest, subject: Subject): Authored {
    const { environment, clock } = this.#options;
    const { verdict } = verifyStatement(statement, {
      policy: this.#policy(),
      wanted: { ...subject, artifactId, environment },
      epochFloor: 0,
      now: clock.wallMs(),
    });
    return { statement, renewAtMs: verdict.until };
  }

  #sign(manifest: SealedManifest, subject: Subject): Authored {
    const { keeper, signer, environment, producer, clock } = this.#options;
    const policy = this.#policy();
    const now = clock.wallMs();
    const scope = { family: subject.family, model: subject.model, environment };
    const authorship = {
      identity: subject.identity,
      model: subject.model,
      environment,
      producer,
      coverage: ["healthy"],
      createdAt: now,
      expiresAt: now + statementLifetimeMs,
      epoch: Math.max(policy.document.minimumEpoch, keeper.epochFloor(scope)),
    };
    const envelope = signStatement({ manifest, authorship }, [signer]);
    const facts = factsOf({ manifest, authorship });
    const evidence = collectEvidence(envelope, policy, now);
    const verdict = decide({ policy, facts, evidence, wanted: facts, epochFloor: 0, now });
    if (verdict.state === "refused")
      throw new RelightError(
        verdict.code,
        `Cannot publish artifact ${manifest.artifactId.slice(0, 12)}: ${verdict.reason}`,
      );
    return { statement: encodeEnvelope(envelope), renewAtMs: now + renewBeforeMs };
  }

  /** @throws RelightError `policy_missing` or `policy_expired`. */
  #policy(): Policy {
    const { keeper, clock } = this.#options;
    const unfit = judgePolicy(keeper.policy, clock.wallMs());
    if (keeper.policy !== null && unfit === null) return keeper.policy;
    throw new RelightError(
      unfit?.code ?? "policy_missing",
      `Cannot install or publish anything: ${unfit?.reason ?? "there is no trust policy"}`,
    );
  }
}

/** Trust that could not be set up: nothing is installed, nothing published, and every question says why. */
export function brokenTrust(failure: RelightError): ArtifactTrust {
  const refuse = (): never => {
    throw failure;
  };
  return {
    summary: { mode: "closed", policyVersion: null, keyId: null },
    revokedKeys: new Set(),
    refresh: async () => {},
    offer: async () => {},
    grant: async () => refuse(),
    readmit: refuse,
    recheck: () => ({ state: "refused", code: failure.code, reason: failure.message }),
    remember: async () => {},
    author: refuse,
  };
}

const unsignedAuthorship = {
  environment: "insecure",
  producer: {},
  coverage: [],
  createdAt: 0,
  expiresAt: 1,
  epoch: 0,
};
