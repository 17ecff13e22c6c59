// SPDX-License-Identifier: Apache-2.0
// This agent's link to the coordinator: one session, kept up in the background, and everything that
// this agent offers said again whenever the coordinator may have forgotten it. A coordinator out of
// reach never stops an engine: what cannot be said now is said later.

import type { Facts, Family } from "../artifacts/family.ts";
import { identityOf } from "../artifacts/identity.ts";
import { listPieces, totalBytes } from "../artifacts/manifest.ts";
import { asRelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import type { Clock } from "../platform/clock.ts";
import { type Deadline, startDeadlineOn } from "../platform/deadline.ts";
import { type SourceIdentity, SourceStatus } from "../protocol/gen/p2p_pb.ts";
import { sourceIdOf } from "../protocol/source-id.ts";
import type { PieceServer } from "../transport/transport.ts";
import type { CoordinatorClient, FoundSource, Publication, Session } from "./coordinator-client.ts";
import { differencesOf, toSourceIdentity } from "./identity-wire.ts";
import type { Announce, Retract } from "./relay.ts";

const retryMs = 2_000;
const readersMs = 1_000;
const goodbyeMsMax = 2_000;
/** Of sources that do not fit, so many are looked at, and so many asked why. */
const listedMax = 10_000;
const othersMax = 8;
const comparedMax = 32;

export interface NodeLinkOptions {
  readonly client: CoordinatorClient;
  readonly server: PieceServer;
  readonly nodeId: string;
  readonly workerId: string;
  /** Where peers reach the server. */
  readonly endpoint: string;
  readonly callMsMax: number;
  readonly clock: Clock;
  readonly log: Log;
  /** The coordinator carries a policy; whether it counts is not the link's to say. */
  readonly onPolicy?: (envelope: Buffer) => void;
}

/** What is said about a family of caches or a part of the weights, under whichever session. */
type Offered = Omit<Publication, "sessionId" | "identity"> & {
  readonly identity: SourceIdentity;
};

export class NodeLink implements AsyncDisposable {
  readonly #options: NodeLinkOptions;
  readonly #closing = new AbortController();
  /** The newest offer of each family. */
  readonly #offers = new Map<string, Offered>();
  /** Families about which the coordinator has not acknowledged the newest word. */
  readonly #unsaid = new Set<string>();
  readonly #sourceIds = new Map<string, string>();
  readonly #turns = new Map<string, Promise<void>>();
  /** So many words were said to the coordinator: what is late on its way must not undo a later one. */
  #words = 0;
  #session: Session | null = null;
  #background: Promise<void> | null = null;
  readonly #identified = Promise.withResolvers<Facts>();
  #identity: { facts: Facts; extra: Readonly<Record<string, string>> } | null = null;

  constructor(options: NodeLinkOptions) {
    this.#options = options;
  }

  /** What this replica shares with others; before it is known nothing can be found or announced. */
  identify(facts: Facts, extra: Readonly<Record<string, string>>): void {
    this.#identity = { facts, extra };
    this.#identified.resolve(facts);
  }

  /** Opens the session now or, when that fails, keeps trying in the background. */
  start(): void {
    this.#background ??= this.#keepSession();
  }

  /** Resolves once it is known what this replica is. */
  get identified(): Promise<Facts> {
    return this.#identified.promise;
  }

  /** @throws RelightError `coordinator_unreachable` and others of the client. */
  async find(
    families: readonly Family[],
    signal: AbortSignal,
  ): Promise<readonly (readonly FoundSource[])[]> {
    return this.findAll(
      families.map((family) => this.#wireIdentity(family)),
      signal,
    );
  }

  /** Sources by identity, in order. @throws RelightError as `find`. */
  async findAll(
    identities: readonly SourceIdentity[],
    signal: AbortSignal,
  ): Promise<readonly (readonly FoundSource[])[]> {
    const { client, workerId: excludeWorkerId } = this.#options;
    return await client.find(identities, { excludeWorkerId, limit: 16 }, signal);
  }

  /** Whether any ready source has weights of a model. @throws RelightError as `find`. */
  async servesWeights(model: string, signal: AbortSignal): Promise<boolean> {
    return (await this.#weightSources(model, signal)).length > 0;
  }

  /** Under which a few ready sources of a model's weights publish. @throws RelightError as `find`. */
  async weightIdentitiesOf(model: string, signal: AbortSignal): Promise<readonly SourceIdentity[]> {
    const weights = await this.#weightSources(model, signal);
    const found = weights
      .slice(0, othersMax)
      .map(({ mxSourceId: sourceId, workerId }) =>
        this.#options.client.identityOf({ sourceId, workerId }, signal),
      );
    return (await Promise.all(found)).filter((identity) => identity !== null);
  }

  /** Of other workers. Weights say how their tensors lie; caches do not. */
  async #weightSources(model: string, signal: AbortSignal) {
    const { client, workerId } = this.#options;
    const filter = { modelNameFilter: model, statusFilter: SourceStatus.READY, limit: listedMax };
    const refs = await client.listSources(filter, signal);
    return refs.filter((ref) => ref.layoutSignature !== undefined && ref.workerId !== workerId);
  }

  /** How the source of this family that is most like us differs; null when nobody else has any. */
  async nearest(family: Family, signal: AbortSignal): Promise<string | null> {
    const { client, workerId } = this.#options;
    const filter = { statusFilter: SourceStatus.READY, limit: listedMax };
    const refs = await client.listSources(filter, signal);
    const others = new Map(
      refs.filter((ref) => ref.workerId !== workerId).map((ref) => [ref.mxSourceId, ref.workerId]),
    );
    const asked = [...others]
      .slice(0, comparedMax)
      .map(([sourceId, other]) => client.identityOf({ sourceId, workerId: other }, signal));
    const own = this.#wireIdentity(family);
    const [closest] = (await Promise.all(asked))
      .map((identity) => (identity === null ? null : differencesOf(own, identity)))
      .filter((differences) => differences !== null)
      .toSorted((left, right) => left.length - right.length);
    return closest === undefined || closest.length === 0 ? null : closest.join("; ");
  }

  /** Offers something under a name of this agent's own until it is taken back; the newest counts. */
  async offer(name: string, offer: Omit<Offered, "workerId">): Promise<void> {
    this.#offers.set(name, { ...offer, workerId: this.#options.workerId });
    await this.#say(name);
  }

  takeBack(name: string): void {
    if (!this.#offers.delete(name)) return;
    this.#say(name).catch((thrown: unknown) => this.#warn(thrown));
  }

  readonly announce: Announce = async ({ family, manifest, isComplete }) => {
    await this.offer(family.name, {
      identity: this.#wireIdentity(family),
      artifact: {
        artifactId: manifest.artifactId,
        family: family.name,
        totalBytes: totalBytes(manifest),
        fileCount: manifest.files.length,
        pieceCount: listPieces(manifest).length,
        baseArtifactIds: [],
      },
      endpoints: [this.#options.endpoint],
      complete: isComplete,
      status: "ready",
    });
  };

  /** Nobody is sent here for the artifact any more, unless something newer was announced since. */
  readonly retract: Retract = ({ family, artifactId }) => {
    if (this.#offers.get(family.name)?.artifact.artifactId !== artifactId) return;
    this.takeBack(family.name);
  };

  /** Says goodbye: from now on nobody is sent here. Idempotent. */
  async withdraw(): Promise<void> {
    using deadline = this.#deadline("the goodbye", goodbyeMsMax);
    this.#closing.abort();
    // The coordinator notices a lost connection by itself; the engine's exit must not wait for more.
    await this.#session?.close(deadline.signal).catch(() => {});
    await this.#background?.catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.withdraw();
    await this.#options.client[Symbol.asyncDispose]();
  }

  async report(report: Parameters<CoordinatorClient["reportBoot"]>[0]): Promise<void> {
    using deadline = this.#deadline("the boot report", this.#options.callMsMax);
    await this.#options.client.reportBoot(report, deadline.signal);
  }

  #wireIdentity(family: Family) {
    const { facts, extra } = this.#identity ?? { facts: null, extra: {} };
    if (facts === null) throw new Error("identify() comes before find() and announce()");
    return toSourceIdentity(identityOf(family, facts, extra));
  }

  async #publish(family: string): Promise<void> {
    const offer = this.#offers.get(family);
    if (this.#session === null || offer === undefined || this.#closing.signal.aborted) return;
    const { callMsMax, client } = this.#options;
    using deadline = this.#deadline("publishing", callMsMax, this.#closing.signal);
    // Until it is acknowledged it has to be said again.
    this.#unsaid.add(family);
    const { id } = this.#session;
    // Before the answer: a publication whose answer is lost has to be taken back as well.
    this.#sourceIds.set(family, sourceIdOf(offer.identity));
    const word = ++this.#words;
    await client.publish({ ...offer, sessionId: id, word }, deadline.signal);
    this.#unsaid.delete(family);
  }

  async #takeBack(family: string): Promise<void> {
    const sourceId = this.#sourceIds.get(family);
    // Offered again meanwhile: the later word replaces the earlier one at the coordinator.
    if (this.#offers.has(family) || sourceId === undefined || this.#session === null) return;
    const { callMsMax, client, workerId } = this.#options;
    using deadline = this.#deadline("withdrawing", callMsMax, this.#closing.signal);
    this.#unsaid.add(family);
    const what = { sessionId: this.#session.id, workerId, sourceId, word: ++this.#words };
    await client.withdraw(what, deadline.signal);
    this.#unsaid.delete(family);
    this.#sourceIds.delete(family);
  }

  /** One word about a family at a time, so that the coordinator hears them in order. */
  #inTurn(family: string, say: (family: string) => Promise<void>): Promise<void> {
    const said = (this.#turns.get(family) ?? Promise.resolve()).then(() => say(family));
    this.#turns.set(
      family,
      said.catch(() => {}),
    );
    return said;
  }

  #deadline(what: string, ms: number, parent?: AbortSignal): Deadline {
    const { clock } = this.#options;
    return startDeadlineOn(clock, { what, ms, ...(parent === undefined ? {} : { parent }) });
  }

  async #publishAll(): Promise<void> {
    for (const family of this.#offers.keys()) await this.#say(family);
  }

  /** The newest that there is to say about a family. */
  #say(family: string): Promise<void> {
    return this.#inTurn(family, () =>
      this.#offers.has(family) ? this.#publish(family) : this.#takeBack(family),
    );
  }

  #warn(thrown: unknown): void {
    if (this.#closing.signal.aborted) return;
    const { code, message } = asRelightError(thrown);
    this.#options.log.warn("failure", { code, message });
  }

  async #keepSession(): Promise<void> {
    const { clock, server, log } = this.#options;
    const signal = this.#closing.signal;
    let isSaid = false;
    while (!signal.aborted) {
      try {
        if (this.#session === null) await this.#openSession();
        this.#session?.setReaders(server.stats().readers);
        for (const family of this.#unsaid) await this.#say(family);
        await clock.sleep(readersMs, signal);
      } catch (thrown) {
        if (signal.aborted) return;
        const { code, message } = asRelightError(thrown);
        if (!isSaid) log.info("failure", { code, message });
        isSaid = true;
        await clock.sleep(retryMs, signal).catch(() => {});
      }
    }
  }

  async #openSession(): Promise<void> {
    const { client, nodeId, endpoint, callMsMax } = this.#options;
    using deadline = this.#deadline("opening the session", callMsMax, this.#closing.signal);
    this.#session = await client.openSession({ nodeId, agentEndpoint: endpoint }, deadline.signal);
    this.#session.onChange((change) => {
      if (change.type === "policy") this.#options.onPolicy?.(change.envelope);
      if (change.type !== "restored") return;
      // Also when it was resumed: saying it twice is harmless, and a publish may have been lost with the link.
      this.#publishAll().catch((thrown: unknown) => this.#warn(thrown));
    });
    await this.#publishAll();
  }
}
