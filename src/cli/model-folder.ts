// SPDX-License-Identifier: Apache-2.0
// What `relight model publish` and `relight model fetch` share: the folder, whose checkpoint lies in it,
// and the parts that handle it.

import fs from "node:fs";
import { type CheckpointNode, openCheckpoint } from "../agent/checkpoints.ts";
import { openAgent } from "../agent/main.ts";
import { startHashPool } from "../artifacts/hash-pool.ts";
import { checkpointFamily, hubSnapshot } from "../artifacts/kinds/checkpoint.ts";
import type { RankPlace } from "../artifacts/kinds/checkpoint-order.ts";
import { boolean, duration, text } from "../config/kinds.ts";
import { RelightError } from "../errors.ts";
import { agentSettings, runSettings } from "./agent-settings.ts";
import type { Context } from "./command.ts";
import { terminalNarrator } from "./narrate.ts";

const secondMs = 1_000;

export const modelGroups = ["agent", "coordinator", "trust", "state", "log"] as const;

export const modelFlags = {
  model: text({
    fallback: "",
    about: "Name of the model; told by the folder's name in a Hugging Face cache.",
  }),
  revision: text({
    fallback: "",
    about: "Its revision, the same where it is published and fetched; told as the model is.",
  }),
  allow_code: boolean({
    fallback: "false",
    about: "Also pickles and Python: files that an engine executes.",
  }),
  settle: duration({
    fallback: "2s",
    minMs: 0,
    maxMs: 600 * secondMs,
    about: "How long a file must be unchanged before it is sealed.",
  }),
};

export interface ModelFolder extends AsyncDisposable {
  readonly root: string;
  readonly model: string;
  readonly revision: string;
  readonly node: CheckpointNode;
}

type ModelContext = Pick<Context<typeof modelFlags>, "config" | "flags" | "output" | "log">;

/** @throws RelightError `config_invalid` when nothing says which model it is. */
export async function openModelFolder(
  { config, flags, output, log }: ModelContext,
  options: { folder: string; rank: RankPlace | null; budgetMs: number; isPublishing: boolean },
): Promise<ModelFolder> {
  const root = fs.realpathSync(options.folder);
  const told = hubSnapshot(root);
  const model = flags.model || (told?.model ?? "");
  const revision = flags.revision || (told?.revision ?? "");
  if (model === "")
    throw new RelightError(
      "config_invalid",
      `Cannot tell whose checkpoint "${root}" is: want --model`,
    );
  const family = checkpointFamily({
    folder: root,
    allowsCode: flags.allow_code,
    rank: options.rank,
  });
  const agent = agentSettings(config);
  await using stack = new AsyncDisposableStack();
  const opened = stack.use(await openAgent({ ...agent, weights: null }, log));
  const pool = stack.use(startHashPool(agent.threads));
  const node = openCheckpoint({
    family,
    root,
    pool,
    stateFolder: config["state.dir"],
    nodeId: agent.nodeId,
    parts: { ...opened, log, narrator: terminalNarrator(output) },
    settings: {
      ...runSettings(config),
      facts: { model, revision },
      extraIdentity: {},
      families: ["none"],
      customCaches: [family],
      python: "",
      isPublishing: options.isPublishing,
      budgetMs: options.budgetMs,
      fetchMsMax: options.budgetMs,
      settleMs: flags.settle,
    },
  });
  const owned = stack.move();
  return { root, model, revision, node, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
