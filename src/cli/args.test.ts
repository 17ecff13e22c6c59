// SPDX-License-Identifier: Apache-2.0
// How words become flags, operands and the command to run.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { boolean, integer } from "../config/kinds.ts";
import { flagTargets, leadingWords, readArguments } from "./args.ts";
import { defineCommand } from "./command.ts";
import { commands } from "./commands.ts";

const run = defineCommand({
  settings: ["run", "agent"],
  shortGroups: ["run"],
  takesWords: true,
  run: async () => 0,
});
const list = defineCommand({
  flags: {
    rows_max: integer({ fallback: "10", min: 1, max: 99, about: "Rows." }),
    all: boolean({ fallback: "false", about: "All." }),
  },
  operands: [
    { name: "ID", about: "which one" },
    { name: "MORE", about: "and another", isOptional: true },
  ],
  run: async () => 0,
});

const readRun = (...argv: string[]) =>
  readArguments(argv, { name: "run", command: run, workingDirectory: "/w" });
const readList = (...argv: string[]) =>
  readArguments(argv, { name: "boot list", command: list, workingDirectory: "/w" });
const problemsOf = (read: ReturnType<typeof readRun>) =>
  read.problems.map((one) => `${one.subject}: ${one.message}`);

describe("readArguments()", () => {
  test("takes a setting with and without the prefix of a short group", () => {
    const long = readRun("--run-model=M", "--", "cmd");
    const short = readRun("--model", "M", "--", "cmd");
    assert.deepEqual(long.settings, [{ key: "run.model", name: "--run-model", texts: ["M"] }]);
    assert.deepEqual(short.settings, [{ key: "run.model", name: "--model", texts: ["M"] }]);
    assert.deepEqual(problemsOf(readRun("--workers=1", "--", "cmd")), ["--workers: No such flag"]);
  });

  test("refuses a flag twice, also under its two names, but gathers a list", () => {
    const repeated = readRun("--model=a", "--run-model=b", "--", "cmd");
    assert.deepEqual(problemsOf(repeated), [
      "--model: Cannot take --model and --run-model more than once: want one value",
    ]);
    const gathered = readRun("--cache", "a=/x", "--run-cache=b=/y", "--", "cmd");
    assert.deepEqual(gathered.settings, [
      { key: "run.cache", name: "--cache", texts: ["a=/x", "b=/y"] },
    ]);
    assert.deepEqual(gathered.problems, []);
  });

  test("stops reading flags at -- and keeps every word after it", () => {
    const read = readRun("--model=M", "--", "vllm", "--model", "X", "--", "-h");
    assert.deepEqual(read.words, ["vllm", "--model", "X", "--", "-h"]);
    assert.equal(read.own["help"], false);
    assert.deepEqual(read.problems, []);
  });

  test("asks for the command to run, and for -- before it", () => {
    assert.deepEqual(problemsOf(readRun("--model=M")), ["-- CMD: Missing: the command to run"]);
    assert.deepEqual(problemsOf(readRun("--model=M", "--")), [
      "-- CMD: Missing: the command to run",
    ]);
    assert.deepEqual(problemsOf(readRun("vllm", "serve")), [
      "vllm: Cannot take this word: want -- before the command to run",
    ]);
  });

  test("reads a command's own flags with their fallbacks", () => {
    assert.deepEqual(readList("x").own, {
      rows_max: 10,
      all: false,
      config: null,
      json: false,
      help: false,
    });
    const given = readList("x", "--rows-max", "7", "--all", "--json=true");
    assert.deepEqual(given.own, { rows_max: 7, all: true, config: null, json: true, help: false });
    assert.deepEqual(given.operands, ["x"]);
  });

  test("names every wrong flag, missing value and missing operand in one list", () => {
    const read = readList("--rows-mxa=7", "--rows-max", "--all=maybe", "--jsno");
    assert.deepEqual(problemsOf(read), [
      "--rows-mxa: No such flag: nearest is --rows-max",
      "--rows-max: Cannot take --rows-max without a value: want a whole number from 1 to 99",
      "--jsno: No such flag: nearest is --json",
      '--all: Cannot read "maybe" as a yes or no: want true or false',
      "ID: Missing: which one",
    ]);
  });

  test("takes no word as a switch's value", () => {
    assert.deepEqual(readList("--all", "x").operands, ["x"]);
    assert.deepEqual(problemsOf(readList("x", "y", "z")), [
      "z: Cannot take this word: want nothing there",
    ]);
  });

  test("takes no command to run where none belongs", () => {
    assert.deepEqual(problemsOf(readList("x", "--", "y")), [
      "--: Cannot take a command to run: want nothing after it",
    ]);
  });

  test("resolves a path against the working directory it is given", () => {
    assert.equal(readList("x", "--config=a.toml").own["config"], "/w/a.toml");
  });

  test("-h is --help, and - is an operand", () => {
    assert.equal(readList("x", "-h").own["help"], true);
    assert.deepEqual(readList("-").operands, ["-"]);
  });
});

describe("leadingWords()", () => {
  test("ends at the first flag", () => {
    assert.deepEqual(leadingWords(["config", "show", "--json", "x"]), ["config", "show"]);
    assert.deepEqual(leadingWords(["--", "x"]), []);
  });
});

describe("commands", () => {
  test("every command loads, and none of its flags has two meanings", async () => {
    for (const [name, entry] of Object.entries(commands)) {
      const { command } = await entry.load();
      const own = Object.keys(command.flags).map((key) => `--${key.replaceAll("_", "-")}`);
      const withoutOwn = flagTargets({ name, command: { ...command, flags: {} } });
      for (const flag of own) assert.ok(!withoutOwn.has(flag), `${name} ${flag}`);
    }
  });
});
