// SPDX-License-Identifier: Apache-2.0
// Which of a checkpoint's files one rank reads, as far as names and the index tell: shards saved for a
// rank carry its number, and a pipeline stage reads the files of its layers. A tensor-parallel rank of an
// ordinary checkpoint reads a slice of every file, so that nothing can be put first for it. A wrong guess
// costs order and nothing else.

import { z } from "zod";

/** Where a rank stands; null for a dimension that is not told. */
export interface RankPlace {
  /** Names with `*` and `?`; what matches comes before everything else. */
  readonly patterns: readonly string[];
  readonly tensorRank: number | null;
  readonly pipeline: { readonly rank: number; readonly count: number } | null;
}

const indexName = /(^|\/)[^/]+\.safetensors\.index\.json$/;
const indexShape = z.object({ weight_map: z.record(z.string(), z.string()) });

/** Of `model-rank-3-part-0.safetensors` as vLLM's and SGLang's sharded loaders save it. */
const shardedName = /(?:^|[-_.])rank[-_]?(\d{1,5})(?=[-_.])/;
const layerName = /(?:^|[./])(?:layers?|h|blocks?)\.(\d{1,6})\./;

/** Groups of the files that only this rank, or few beside it, will read; the most wanted first. */
export function firstFiles(
  paths: readonly string[],
  read: (path: string) => Buffer | null,
  place: RankPlace,
): readonly (readonly string[])[] {
  const named = paths.filter((path) => place.patterns.some((pattern) => matches(pattern, path)));
  const own = paths.filter((path) => isShardOf(path, place.tensorRank));
  const staged = place.pipeline === null ? [] : stageFiles(weightMap(paths, read), place.pipeline);
  const told = paths.filter((path) => staged.includes(path));
  return [named, own, told].filter((group) => group.length > 0);
}

/** The file of each tensor, by all indexes that can be read; their paths are relative to the index. */
export function weightMap(
  paths: readonly string[],
  read: (path: string) => Buffer | null,
): ReadonlyMap<string, string> {
  const indexes = paths.filter(isIndex).flatMap((path) => {
    const map = parseIndex(read(path) ?? Buffer.alloc(0)) ?? new Map<string, string>();
    const folder = path.slice(0, path.lastIndexOf("/") + 1);
    return [...map].map(([tensor, file]) => [`${folder}${tensor}`, `${folder}${file}`] as const);
  });
  return new Map(indexes);
}

/** What an index says; null when it is none. */
export function parseIndex(bytes: Buffer): ReadonlyMap<string, string> | null {
  try {
    const { weight_map: map } = indexShape.parse(JSON.parse(bytes.toString("utf8")));
    return new Map(Object.entries(map));
  } catch {
    return null;
  }
}

export function isIndex(path: string): boolean {
  return indexName.test(path);
}

function isShardOf(path: string, rank: number | null): boolean {
  const match = shardedName.exec(path);
  return rank !== null && match !== null && Number(match[1]) === rank;
}

/** Layers are dealt out in runs of equal length; what belongs to no layer is at one of the two ends. */
function stageFiles(
  files: ReadonlyMap<string, string>,
  { rank, count }: { readonly rank: number; readonly count: number },
): string[] {
  const layers = [...files.keys()].flatMap((tensor) => layerOf(tensor) ?? []);
  const layerCount = layers.reduce((most, layer) => Math.max(most, layer + 1), 0);
  const first = Math.floor((rank * layerCount) / count);
  const end = Math.ceil(((rank + 1) * layerCount) / count);
  const isEnd = rank === 0 || rank === count - 1;
  const wanted = [...files].filter(([tensor]) => {
    const layer = layerOf(tensor);
    return layer === null ? isEnd : layer >= first && layer < end;
  });
  return [...new Set(wanted.map(([, file]) => file))];
}

function layerOf(tensor: string): number | null {
  const match = layerName.exec(tensor);
  return match === null ? null : Number(match[1]);
}

/** `*` stands for any characters but `/`, `?` for one. */
function matches(pattern: string, path: string): boolean {
  const source = pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", "[^/]*");
  return new RegExp(`^${source.replaceAll("?", "[^/]")}$`).test(path);
}
