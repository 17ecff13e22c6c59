// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import fs from "node:fs";
import { describe, test } from "node:test";
import { asHubSnapshot, writeCheckpoint } from "../../../test/support/checkpoint.ts";
import { temporaryFolder } from "../../../test/support/temporary-folder.ts";
import { seal } from "../seal.ts";
import { checkpointFamily, hubSnapshot } from "./checkpoint.ts";

function sealed(root: string, allowsCode = false) {
  const family = checkpointFamily({ folder: root, allowsCode, rank: null });
  return seal({ root, family, excluded: [], settledBeforeMs: Date.now() + 60_000 });
}

describe("checkpoint family", () => {
  test("a snapshot of links and a folder of files are one artifact", () => {
    using folder = temporaryFolder();
    const size = { shards: 1, bytes: 100 };
    writeCheckpoint(folder.path("plain"), size);
    writeCheckpoint(folder.path("moved"), size);
    const told = { model: "org/name", revision: "r" };
    const snapshot = asHubSnapshot(folder.path("moved"), folder.path("hub"), told);
    assert.deepEqual(hubSnapshot(snapshot), {
      ...told,
      repository: folder.path("hub/models--org--name"),
    });
    const links = sealed(snapshot);
    assert.equal(links?.manifest.artifactId, sealed(folder.path("plain"))?.manifest.artifactId);
    assert.ok(links?.files.every(({ realPath }) => realPath?.includes("/blobs/")));
  });

  test("a link counts only when it leads to a file below the folder or, in a hub's cache, the repository", () => {
    using folder = temporaryFolder();
    writeCheckpoint(folder.path("dir"), { shards: 1, bytes: 100 });
    folder.write("outside", "{}");
    for (const [name, to] of [
      ["inside.json", "config.json"],
      ["up.json", "../outside"],
      ["absolute.json", folder.path("outside")],
      ["gone.json", "nowhere"],
      ["folder.json", "."],
      ["round.json", "round.json"],
      ["twice.json", "up.json"],
    ] as const)
      fs.symlinkSync(to, folder.path(`dir/${name}`));
    const result = sealed(folder.path("dir"));
    const paths = result?.manifest.files.map((file) => file.path) ?? [];
    assert.ok(paths.includes("inside.json"));
    assert.deepEqual(result?.skipped.map(({ path, reason }) => [path, reason]).sort(), [
      ["absolute.json", "a link that leads elsewhere"],
      ["folder.json", "a link to no file"],
      ["gone.json", "a link to nothing"],
      ["round.json", "a link to nothing"],
      ["twice.json", "a link that leads elsewhere"],
      ["up.json", "a link that leads elsewhere"],
    ]);
  });

  test("leaves out code unless it is asked for, and what downloaders keep in any case", () => {
    using folder = temporaryFolder();
    for (const name of [
      ...["a.safetensors", "weights.bin", "old.PT", "tokenizer.model", "own.py", "x.incomplete"],
      ...[".gitattributes", ".cache/huggingface/x.json", "chat_template.jinja"],
    ])
      folder.write(`dir/${name}`, name);
    const names = (allowsCode: boolean) =>
      sealed(folder.path("dir"), allowsCode)?.manifest.files.map((file) => file.path);
    const data = ["a.safetensors", "chat_template.jinja", "tokenizer.model"];
    assert.deepEqual(names(false), data);
    assert.deepEqual(names(true), [...data, "old.PT", "own.py", "weights.bin"].sort());
  });
});
