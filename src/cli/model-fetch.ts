// SPDX-License-Identifier: Apache-2.0
// `relight model fetch DIR`: brings a checkpoint from peers into a folder, whole or not at all.

import fs from "node:fs";
import path from "node:path";
import type { RankPlace } from "../artifacts/kinds/checkpoint-order.ts";
import { boolean, duration, integer, texts } from "../config/kinds.ts";
import { formatBytes, formatMs } from "../core/units.ts";
import { codes, RelightError } from "../errors.ts";
import { fromNodeError } from "../platform/node-errors.ts";
import { type Context, defineCommand } from "./command.ts";
import { modelFlags, modelGroups, openModelFolder } from "./model-folder.ts";

const secondMs = 1_000;
const ranksMax = 65_535;

const flags = {
  ...modelFlags,
  budget: duration({
    fallback: "1h",
    minMs: secondMs,
    maxMs: 7 * 86_400 * secondMs,
    about: "Longest time for all of it. What has arrived by then is kept for the next attempt.",
  }),
  serve: boolean({
    fallback: "false",
    about: "Go on offering it to others until stopped. While it is fetched it is offered anyway.",
  }),
  rank_files: texts({
    fallback: [],
    pattern: /^[^\0\n,]{1,256}$/,
    wants: "names with * and ?",
    placeholder: "PATTERN",
    about: "Files that come first.",
  }),
  tp_rank: integer({
    fallback: null,
    min: 0,
    max: ranksMax,
    about: "Tensor-parallel rank, whose shards of a sharded checkpoint come first.",
  }),
  pp_rank: integer({
    fallback: null,
    min: 0,
    max: ranksMax,
    about: "Pipeline stage, the files of whose layers come first; with --pp.",
  }),
  pp: integer({ fallback: null, min: 1, max: ranksMax + 1, about: "Pipeline stages in all." }),
};

export const command = defineCommand({
  settings: modelGroups,
  flags,
  operands: [{ name: "DIR", about: "Where it is to lie; made when it does not exist." }],
  run: async (context) => {
    const { output, signal } = context;
    const folder = makeFolder(path.resolve(context.workingDirectory, context.operands[0] ?? ""));
    const options = {
      folder,
      rank: rankPlace(context.flags),
      budgetMs: context.flags.budget,
      isPublishing: true,
    };
    await using opened = await openModelFolder(context, options);
    const { root, model, revision, node } = opened;
    const startMs = performance.now();
    const { record, failure } = await node.fetch(signal);
    const ms = Math.round(performance.now() - startMs);
    const { state, artifactId, fetched, fetchedBytes, resumedBytes, alreadyThere, sources } =
      record;
    const code = failure?.code ?? null;
    const used = sources.filter((source) => source.pieces > 0).map(({ endpoint }) => endpoint);
    output.result(
      {
        ...{ model, revision, root, state, code, reason: failure?.message ?? null },
        ...{ artifactId, fetched, fetchedBytes, resumedBytes, alreadyThere, ms, sources: used },
      },
      () =>
        failure === null
          ? `${state}: ${formatBytes(fetchedBytes)} from ${used.length} in ${formatMs(ms)}`
          : `${failure.code}: ${failure.message}`,
    );
    if (failure !== null) return codes[failure.code].exit;
    if (context.flags.serve) await node.publish(signal);
    return 0;
  },
});

function makeFolder(folder: string): string {
  try {
    fs.mkdirSync(folder, { recursive: true });
    return folder;
  } catch (error) {
    throw fromNodeError(error, `make "${folder}"`);
  }
}

/** @throws RelightError `config_invalid` for half of a pipeline's place. */
function rankPlace(given: Context<typeof flags>["flags"]): RankPlace | null {
  const { rank_files: patterns, tp_rank: tensorRank, pp_rank: rank, pp: count } = given;
  if ((rank === null) !== (count === null) || (rank ?? 0) >= (count ?? 1))
    throw new RelightError("config_invalid", "Cannot place a stage: want --pp-rank below --pp");
  if (patterns.length === 0 && tensorRank === null && rank === null) return null;
  return {
    patterns,
    tensorRank,
    pipeline: rank === null || count === null ? null : { rank, count },
  };
}
