// SPDX-License-Identifier: Apache-2.0
// Checkpoints for tests: real safetensors files with repeatable bytes, their index and a configuration.

import fs from "node:fs";
import path from "node:path";
import { generator, randomBytes } from "./tree.ts";

/** The bytes of a safetensors file with one U8 tensor for each name, all of `bytes` length. */
export function safetensors(tensors: readonly string[], bytes: number, seed = 1): Buffer {
  const header = Object.fromEntries(
    tensors.map((name, at) => [
      name,
      { dtype: "U8", shape: [bytes], data_offsets: [at * bytes, (at + 1) * bytes] },
    ]),
  );
  return withHeader(header, randomBytes(tensors.length * bytes, generator(seed)));
}

/** Whatever the header says. */
export function withHeader(header: unknown, data: Buffer): Buffer {
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, data]);
}

/** A folder with `shards` of two layers each, the shard's size in bytes. */
export function writeCheckpoint(
  folder: string,
  { shards, bytes, seed = 1 }: { shards: number; bytes: number; seed?: number },
): void {
  fs.mkdirSync(folder, { recursive: true });
  const map: Record<string, string> = {};
  for (let shard = 0; shard < shards; shard++) {
    const name = shardName(shard, shards);
    const layers = [`model.layers.${2 * shard}.w`, `model.layers.${2 * shard + 1}.w`];
    for (const layer of layers) map[layer] = name;
    const half = Math.floor(bytes / 2);
    fs.writeFileSync(path.join(folder, name), safetensors(layers, half, seed * 100 + shard));
  }
  const index = JSON.stringify({ metadata: {}, weight_map: map });
  fs.writeFileSync(path.join(folder, "model.safetensors.index.json"), index);
  fs.writeFileSync(path.join(folder, "config.json"), `{"model_type":"test","seed":${seed}}`);
}

export function shardName(shard: number, shards: number): string {
  const five = (number: number) => String(number).padStart(5, "0");
  return `model-${five(shard + 1)}-of-${five(shards)}.safetensors`;
}

/** Moves a folder's files into a Hugging Face cache: `blobs/` and a snapshot of links. @returns the snapshot. */
export function asHubSnapshot(
  folder: string,
  hub: string,
  { model, revision }: { model: string; revision: string },
): string {
  const repository = path.join(hub, `models--${model.replaceAll("/", "--")}`);
  const snapshot = path.join(repository, "snapshots", revision);
  fs.mkdirSync(path.join(repository, "blobs"), { recursive: true });
  fs.mkdirSync(snapshot, { recursive: true });
  for (const [at, name] of fs.readdirSync(folder).sort().entries()) {
    fs.renameSync(path.join(folder, name), path.join(repository, "blobs", `blob-${at}`));
    fs.symlinkSync(`../../blobs/blob-${at}`, path.join(snapshot, name));
  }
  return snapshot;
}
