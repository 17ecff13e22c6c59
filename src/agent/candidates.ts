// SPDX-License-Identifier: Apache-2.0
// What a target makes of the coordinator's answer: which artifacts are worth a look, in which order,
// and from whom. Pure; used when a cache is warmed and again whenever a running pull asks for more.

import { isHex32 } from "../core/digest.ts";
import type { FoundSource } from "./coordinator-client.ts";

/** Distinct artifacts that one boot takes a look at; the largest come first. */
const artifactsMax = 4;
/** More than a target asks for: what a coordinator names beyond that is not looked at. */
const sourcesMax = 64;

/** What the coordinator told about one source. */
export interface Candidate {
  readonly artifactId: string;
  readonly endpoint: string;
  readonly totalBytes: number;
  readonly isComplete: boolean;
}

export interface ArtifactSources {
  readonly artifactId: string;
  readonly sources: readonly Candidate[];
}

/** What is no artifact's id is left out: it would become part of a request to somebody else. */
export function candidatesOf(found: readonly FoundSource[]): Candidate[] {
  const named = found.slice(0, sourcesMax).filter(({ artifact }) => isHex32(artifact.artifactId));
  return named.flatMap(({ artifact, endpoints, complete }) =>
    endpoints.slice(0, 1).map((endpoint) => ({
      artifactId: artifact.artifactId,
      endpoint,
      totalBytes: artifact.totalBytes,
      isComplete: complete,
    })),
  );
}

/** Complete ones first, then the largest: it most likely has what the others have. */
export function groupByArtifact(candidates: readonly Candidate[]): ArtifactSources[] {
  const groups = Map.groupBy(candidates, (candidate) => candidate.artifactId);
  const ranked = [...groups].sort(([, left], [, right]) => rank(right) - rank(left));
  return ranked.slice(0, artifactsMax).map(([artifactId, sources]) => ({ artifactId, sources }));
}

function rank(group: readonly Candidate[]): number {
  const [first] = group;
  return (group.some((candidate) => candidate.isComplete) ? 2 ** 50 : 0) + (first?.totalBytes ?? 0);
}

/** In random order, so that a fleet that was told of the same sources does not ask one of them first. */
export function shuffled<Value>(values: readonly Value[], random: () => number): Value[] {
  return values
    .map((value) => ({ value, at: random() }))
    .sort((left, right) => left.at - right.at)
    .map(({ value }) => value);
}
