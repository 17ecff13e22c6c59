// SPDX-License-Identifier: Apache-2.0
// One replica's weights: what its engine loads from live replicas is a phase of the boot ledger, what it
// offers is told to the coordinator. A failure here is never the engine's: it loads from disk, and the
// ledger says why.

import { formatBytes, formatMs } from "../core/units.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import type { Clock } from "../platform/clock.ts";
import { startDeadlineOn } from "../platform/deadline.ts";
import { type Coordinate, coordinateKey, coordinateLabel } from "../weights/coordinate.ts";
import type { FoundSources, WeightEvents } from "../weights/host-session.ts";
import { contentId, type WeightLayout, type WeightManifest } from "../weights/manifest.ts";
import type { PullReport } from "../weights/pull.ts";
import { spanBytes } from "../weights/tensor.ts";
import type { Ledger, WeightRecord } from "./ledger.ts";
import type { Narrator } from "./narrator.ts";
import type { NodeLink } from "./node-link.ts";
import type { WeightParts } from "./open-weights.ts";
import type { CacheParts, CacheSettings } from "./replica-caches.ts";
import { findWeightSources, mayBeServed, type WeightFinderParts } from "./weight-finder.ts";
import { describeTensors, weightIdentity } from "./weight-identity.ts";

/** Null where no weights are handed over. */
export interface WeightHoldings {
  readonly weights: WeightParts | null;
}

export interface OpenReplicaWeights extends AsyncDisposable {
  readonly socket: string;
  /** How the engine learns of the socket. */
  readonly environment: Readonly<Record<string, string>>;
}

/**
 * Opens the socket for one replica's engine.
 * @throws RelightError `port_in_use`, `request_invalid`
 */
export function openReplicaWeights(
  parts: Pick<CacheParts, "link" | "clock" | "log" | "narrator"> & { weights: WeightParts },
  {
    ledger,
    settings,
    whenWarm,
    onChange,
  }: {
    readonly ledger: Ledger;
    readonly settings: Pick<CacheSettings, "isPublishing" | "discoverMsMax">;
    /** Resolves when the engine's caches are as warm as they get. */
    readonly whenWarm: () => Promise<void>;
    /** The ledger has changed. */
    readonly onChange: () => void;
  },
): OpenReplicaWeights {
  const { link, clock, log, narrator, weights: door } = parts;
  const replica: ReplicaWeights = new ReplicaWeights({
    ...{ link, clock, log, narrator, ledger, onChange },
    ...{ isPublishing: settings.isPublishing, discoverMsMax: settings.discoverMsMax },
    openSource: door.openSource,
    endpoints: () => opened.endpoints(),
  });
  const { sourcesFor, lookFor, events } = replica;
  const opened = door.open({ sourcesFor, lookFor, events, whenWarm });
  return {
    socket: opened.socket,
    environment: { RELIGHT_AGENT_SOCKET: opened.socket },
    [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
  };
}

interface ReplicaWeightsOptions {
  readonly link: NodeLink;
  readonly ledger: Ledger;
  readonly clock: Clock;
  readonly log: Log;
  readonly narrator: Narrator;
  readonly openSource: WeightFinderParts["openSource"];
  /** Where other agents reach ours, best first. */
  readonly endpoints: () => Promise<readonly string[]>;
  readonly isPublishing: boolean;
  /** Longest wait for the coordinator. */
  readonly discoverMsMax: number;
  /** The ledger has changed. */
  readonly onChange: () => void;
}

class ReplicaWeights {
  readonly #options: ReplicaWeightsOptions;

  constructor(options: ReplicaWeightsOptions) {
    this.#options = options;
  }

  readonly events: WeightEvents = {
    offered: (manifest) => void this.#offer(manifest),
    withheld: (coordinate) => this.#withhold(coordinate),
    loading: (layout) => this.#follow(layout),
  };

  /** For the host. @throws RelightError as findWeightSources does, and `deadline_exceeded`. */
  readonly sourcesFor = async (
    want: { readonly layout: WeightLayout; readonly hints: readonly string[] },
    signal: AbortSignal,
  ): Promise<FoundSources> => {
    const { clock, link, openSource, discoverMsMax: ms } = this.#options;
    const what = "asking the coordinator for live weights";
    using deadline = startDeadlineOn(clock, { what, ms, parent: signal });
    return await findWeightSources({ link, openSource }, want, deadline.signal);
  };

  /**
   * For an engine before it builds its model. What it is told is the ledger's reason, for it asks no more.
   * @throws RelightError as mayBeServed does, and `deadline_exceeded`.
   */
  readonly lookFor = async (
    want: {
      readonly model: string;
      readonly coordinate: Coordinate;
      readonly hints: readonly string[];
    },
    signal: AbortSignal,
  ): Promise<void> => {
    const { clock, link, discoverMsMax: ms, onChange } = this.#options;
    if (want.hints.length > 0) return;
    const what = "asking the coordinator for live weights";
    using deadline = startDeadlineOn(clock, { what, ms, parent: signal });
    try {
      await mayBeServed(link, want.model, deadline.signal);
    } catch (thrown) {
      const error = asRelightError(thrown);
      this.#cold(this.#record(want.coordinate), error, labelOf(want.coordinate));
      onChange();
      throw error;
    }
  };

  async #offer(manifest: WeightManifest): Promise<void> {
    const { link, narrator, isPublishing, endpoints, onChange } = this.#options;
    if (!isPublishing) return;
    const { generation } = manifest;
    const content = contentId(manifest);
    const totalBytes = bytesOf(manifest);
    this.#record(manifest.coordinate).offered = { content, generation };
    try {
      await link.offer(nameOf(manifest.coordinate), {
        identity: weightIdentity(manifest, await link.identified),
        artifact: {
          artifactId: content,
          family: "weights",
          totalBytes,
          fileCount: manifest.tensors.length,
          pieceCount: manifest.allocations.length,
          baseArtifactIds: [],
        },
        endpoints: await endpoints(),
        complete: true,
        status: "ready",
        workerRank: manifest.coordinate.tensor.rank,
        tensors: describeTensors(manifest),
      });
      narrator.say(
        `offering ${labelOf(manifest.coordinate)}: ${manifest.tensors.length} tensors, ${formatBytes(totalBytes)}, generation ${generation}`,
      );
    } catch (thrown) {
      // The link says it again; until then nobody is sent here.
      this.#warn(thrown);
    }
    onChange();
  }

  #withhold(coordinate: Coordinate): void {
    this.#options.link.takeBack(nameOf(coordinate));
  }

  #follow(layout: WeightLayout): (outcome: PullReport | RelightError) => void {
    const { ledger, onChange } = this.#options;
    const label = labelOf(layout.coordinate);
    const phase = ledger.startPhase(label);
    const record = this.#record(layout.coordinate);
    record.state = "loading";
    record.tensors = layout.tensors.length;
    onChange();
    return (outcome) => {
      phase.endMs = ledger.elapsedMs();
      if (outcome instanceof RelightError) {
        phase.code = outcome.code;
        phase.detail = outcome.message;
        this.#cold(record, outcome, label);
      } else this.#loaded(record, outcome, label);
      onChange();
    };
  }

  #loaded(record: WeightRecord, report: PullReport, label: string): void {
    const { bytes, copyMs, content, sources, failures, costBytes } = report;
    Object.assign(record, { state: "loaded", code: null, reason: null, bytes, content, costBytes });
    record.copyMs = Math.round(copyMs);
    record.sources = [...sources];
    record.transports = [...report.transports];
    record.failures = [...failures];
    this.#options.narrator.say(
      `warm: ${label}: ${formatBytes(bytes)} from ${sources.length} live in ${formatMs(report.totalMs)}, every tensor verified`,
    );
  }

  #cold(record: WeightRecord, error: RelightError, label: string): void {
    record.state = "cold";
    this.#options.ledger.cold(record, error);
    this.#options.narrator.say(`cold: ${label}: ${error.code}: ${error.message}`);
  }

  #record(coordinate: Coordinate): WeightRecord {
    return this.#options.ledger.weights(coordinateKey(coordinate));
  }

  #warn(thrown: unknown): void {
    const { code, message } = asRelightError(thrown);
    this.#options.log.warn("failure", { code, message });
  }
}

/** For people. */
function labelOf(coordinate: Coordinate): string {
  return `weights ${coordinateLabel(coordinate)}`.trim();
}

function nameOf(coordinate: Coordinate): string {
  return `weights ${coordinateKey(coordinate)}`;
}

function bytesOf(manifest: WeightManifest): number {
  return manifest.tensors.reduce((sum, tensor) => sum + spanBytes(tensor), 0);
}
