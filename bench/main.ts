// SPDX-License-Identifier: Apache-2.0
// `npm run bench -- NAME [--json] [--out=DIR]`: runs bench/NAME.ts and keeps what it measured, with the
// machine it was measured on, in bench/results/NAME.json. Without a name it lists the benchmarks. A
// benchmark is a file that exports `run(emit)`.

import { execFileSync } from "node:child_process";
import { globSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";
import { formatTable } from "../src/cli/output.ts";
import { formatBytes } from "../src/core/units.ts";

/** One measured number. */
export interface Line {
  /** `artifacts.tree.vs_rsync`; a name with `.vs_` has a ratio. */
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** What the value is held against, in the same unit, from the same run. */
  readonly baseline?: number;
  /** How many times better the value is than the baseline; above 1 is better. */
  readonly ratio?: number;
}

export type Emit = (line: Line) => void;

interface Benchmark {
  readonly run: (emit: Emit) => Promise<void>;
}

const head = ["name", "value", "unit", "baseline", "ratio"];

if (import.meta.main) await main(process.argv.slice(2));

async function main(words: readonly string[]): Promise<void> {
  const name = words.find((word) => !word.startsWith("--"));
  const names = benchmarkNames();
  if (name === undefined || !names.includes(name)) {
    console.error(name === undefined ? "Benchmarks:" : `error: no benchmark is called "${name}":`);
    console.log(names.join("\n"));
    process.exitCode = name === undefined ? 0 : 2;
    return;
  }
  const out = words.find((word) => word.startsWith("--out="))?.slice("--out=".length);
  const lines = await measure(name, { isJson: words.includes("--json") });
  keep(name, { lines, folder: out ?? join(import.meta.dirname, "results") });
}

/** Files that export `run`; the others are parts of them. */
function benchmarkNames(): readonly string[] {
  return globSync("*.ts", { cwd: import.meta.dirname })
    .filter((file) => /^export (?:async )?function run\(/m.test(sourceOf(file)))
    .map((file) => basename(file, ".ts"))
    .sort();
}

function sourceOf(file: string): string {
  return readFileSync(join(import.meta.dirname, file), "utf8");
}

async function measure(name: string, options: { readonly isJson: boolean }): Promise<Line[]> {
  const url = pathToFileURL(join(import.meta.dirname, `${name}.ts`)).href;
  const { run }: Benchmark = await import(url);
  const lines: Line[] = [];
  await run((line) => {
    lines.push(line);
    if (options.isJson) console.log(JSON.stringify(line));
  });
  if (!options.isJson) console.log(formatTable([head, ...lines.map(cells)]));
  return lines;
}

function cells(line: Line): string[] {
  return [line.name, shown(line.value), line.unit, shown(line.baseline), shown(line.ratio)];
}

function shown(value: number | undefined): string {
  return value === undefined ? "" : String(Number(value.toPrecision(4)));
}

function keep(
  name: string,
  measured: { readonly lines: readonly Line[]; readonly folder: string },
): void {
  const record = {
    name,
    date: new Date().toISOString(),
    command: `npm run bench -- ${name}`,
    commit: outputOf("git", ["rev-parse", "HEAD"]),
    node: process.version,
    machine: describeMachine(),
    lines: measured.lines,
  };
  mkdirSync(measured.folder, { recursive: true });
  writeFileSync(join(measured.folder, `${name}.json`), `${JSON.stringify(record, null, 2)}\n`);
}

function describeMachine() {
  const gpus = outputOf("nvidia-smi", ["--query-gpu=name,driver_version", "--format=csv,noheader"]);
  return {
    cpu: cpus()[0]?.model ?? null,
    cores: cpus().length,
    memory: formatBytes(totalmem()),
    kernel: release(),
    gpus: gpus === null ? [] : gpus.split("\n"),
  };
}

/** Null when there is no such program, as on a machine without a GPU or outside a checkout. */
function outputOf(program: string, words: readonly string[]): string | null {
  try {
    const stdio: ["ignore", "pipe", "ignore"] = ["ignore", "pipe", "ignore"];
    return execFileSync(program, words, { encoding: "utf8", stdio, timeout: 10_000 }).trim();
  } catch {
    return null;
  }
}
