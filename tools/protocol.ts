// SPDX-License-Identifier: Apache-2.0
// Generates src/protocol/gen/ from src/protocol/proto/*.proto with buf and protobuf-es, without the
// network. The output is committed; `--check` fails when it is not what the .proto files say.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const bin = join(root, "node_modules", ".bin");
const committed = join(root, "src", "protocol", "gen");

// erasable_syntax: enums as constant objects, so that Node runs the output by type stripping.
const template = (out: string) =>
  JSON.stringify({
    version: "v2",
    clean: true,
    plugins: [
      {
        local: join(bin, "protoc-gen-es"),
        out,
        opt: ["target=ts", "import_extension=ts", "erasable_syntax=true"],
      },
    ],
  });

function generate(out: string): void {
  const proto = join(root, "src", "protocol", "proto");
  const done = spawnSync(join(bin, "buf"), ["generate", proto, "--template", template(out)], {
    cwd: root,
    stdio: "inherit",
    timeout: 60_000,
    env: { ...process.env, PATH: `${bin}:${process.env["PATH"] ?? ""}` },
  });
  if (done.status !== 0) throw new Error(`Cannot generate: buf ended with ${done.status}`);
}

function contents(folder: string): Map<string, string> {
  const names = readdirSync(folder).sort();
  return new Map(names.map((name) => [name, readFileSync(join(folder, name), "utf8")]));
}

function check(): void {
  const fresh = mkdtempSync(join(tmpdir(), "relight-protocol-"));
  try {
    generate(fresh);
    const [wanted, got] = [contents(fresh), contents(committed)];
    const names = new Set([...wanted.keys(), ...got.keys()]);
    const stale = [...names].filter((name) => wanted.get(name) !== got.get(name));
    if (stale.length > 0) {
      console.error(
        `Out of date in src/protocol/gen: ${stale.join(", ")}; run node tools/protocol.ts`,
      );
      process.exitCode = 1;
    }
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

if (process.argv.includes("--check")) check();
else generate(committed);
