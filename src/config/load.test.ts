// SPDX-License-Identifier: Apache-2.0
// Precedence, origins and the one list of everything that is wrong.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { RelightError } from "../errors.ts";
import { boolean, bytes, integer, pairs, path, text } from "./kinds.ts";
import { load, loadTable, readFallback, type Sources } from "./load.ts";
import { flagName, isServiceLink, otherVariables, shortFlagName, variableName } from "./names.ts";
import { schema } from "./schema.ts";
import { describeTable, showTable } from "./show.ts";

const about = "For the test.";
const table = {
  "part.size": bytes({ fallback: "1MiB", min: 1, max: 2 ** 40, about }),
  "part.workers": integer({ fallback: "2", min: 1, max: 64, about }),
  "part.on": boolean({ fallback: "true", about }),
  "part.pairs": pairs({ fallback: [], about }),
  "part.dir": path({ fallback: null, about }),
  "part.token": text({ fallback: null, secret: true, pattern: /^t-/, wants: "t-...", about }),
};

function sources(given: Partial<Sources> = {}): Sources {
  return {
    flags: [],
    environment: {},
    file: null,
    workingDirectory: "/work-dir",
    problems: [],
    ...given,
  };
}

function file(content: string): Pick<Sources, "file"> {
  return { file: { path: "conf/relight.toml", text: content } };
}

function failure(given: Partial<Sources>): RelightError {
  try {
    loadTable(table, sources(given));
  } catch (error) {
    assert.ok(error instanceof RelightError);
    return error;
  }
  throw new assert.AssertionError({ message: "wanted a failure" });
}

describe("loadTable()", () => {
  test("takes flag over environment over file over fallback, each with its origin", () => {
    const { values, origins } = loadTable(
      table,
      sources({
        flags: [{ key: "part.size", name: "--size", texts: ["3B"] }],
        environment: { RELIGHT_PART_SIZE: "2B", RELIGHT_PART_WORKERS: "7" },
        ...file('[part]\nsize = "1B"\nworkers = 5\non = false\n'),
      }),
    );
    assert.deepEqual(values, {
      "part.size": 3,
      "part.workers": 7,
      "part.on": false,
      "part.pairs": [],
      "part.dir": null,
      "part.token": null,
    });
    assert.deepEqual(origins["part.size"], { from: "flag", name: "--size" });
    assert.deepEqual(origins["part.workers"], {
      from: "environment",
      name: "RELIGHT_PART_WORKERS",
    });
    assert.deepEqual(origins["part.on"], { from: "file", name: "conf/relight.toml:4" });
    assert.deepEqual(origins["part.dir"], { from: "default", name: "default" });
  });

  test("gives a frozen result", () => {
    const { values, origins } = loadTable(table, sources());
    assert.ok(Object.isFrozen(values) && Object.isFrozen(origins));
    assert.ok(Object.isFrozen(values["part.pairs"]));
  });

  test("reports everything wrong at once, with origin and nearest name", () => {
    const error = failure({
      flags: [{ key: "part.on", name: "--part-on", texts: ["yes"] }],
      environment: { RELIGHT_PART_SIZE: "8XB", RELIGHT_PART_WORKER: "1" },
      ...file('[part]\nsizes = "1B"\nworkers = 0\n'),
      problems: [{ subject: "--foo", message: "No such flag", origin: "command line" }],
    });
    assert.equal(error.code, "config_invalid");
    assert.equal(
      error.message,
      [
        "6 settings are wrong",
        "  --foo                No such flag   (command line)",
        "  RELIGHT_PART_WORKER  No such setting: nearest is RELIGHT_PART_WORKERS   (environment)",
        "  part.sizes           No such setting: nearest is part.size   (conf/relight.toml:2)",
        '  part.size            Cannot read "8XB" as a size: want a number and one of B, KiB, MiB, GiB, TiB, from 1B to 1TiB   (RELIGHT_PART_SIZE)',
        '  part.workers         Cannot read "0" as a whole number: want a whole number from 1 to 64   (conf/relight.toml:3)',
        '  part.on              Cannot read "yes" as a yes or no: want true or false   (--part-on)',
      ].join("\n"),
    );
  });

  test("stops at a wrong value even where a better source hides it", () => {
    const error = failure({
      flags: [{ key: "part.workers", name: "--part-workers", texts: ["3"] }],
      environment: { RELIGHT_PART_WORKERS: "many" },
    });
    assert.match(error.message, /"many".*RELIGHT_PART_WORKERS/);
  });

  test("never repeats a secret, neither wrong nor shown", () => {
    assert.doesNotMatch(
      failure({ environment: { RELIGHT_PART_TOKEN: "hunter2" } }).message,
      /hunter2/,
    );
    const loaded = loadTable(table, sources({ environment: { RELIGHT_PART_TOKEN: "t-hunter2" } }));
    const row = showTable(table, loaded).find((one) => one.key === "part.token");
    assert.equal(row?.value, "(secret)");
    assert.equal(loaded.values["part.token"], "t-hunter2");
  });

  test("splits a list in the environment at commas and takes an array from the file", () => {
    const want = [
      { name: "a", value: "1" },
      { name: "b", value: "2" },
    ];
    const fromEnvironment = loadTable(
      table,
      sources({ environment: { RELIGHT_PART_PAIRS: "a=1,b=2" } }),
    );
    const fromFile = loadTable(table, sources(file('[part]\npairs = ["a=1", "b=2"]')));
    assert.deepEqual(fromEnvironment.values["part.pairs"], want);
    assert.deepEqual(fromFile.values["part.pairs"], want);
  });

  test("resolves a path of the file against the file and of the environment against the process", () => {
    const fromFile = loadTable(table, sources(file('[part]\ndir = "x"')));
    const fromEnvironment = loadTable(table, sources({ environment: { RELIGHT_PART_DIR: "x" } }));
    assert.equal(fromFile.values["part.dir"], "/work-dir/conf/x");
    assert.equal(fromEnvironment.values["part.dir"], "/work-dir/x");
  });

  test("takes no variable of a Kubernetes service link for a setting", () => {
    const environment = {
      RELIGHT_SERVICE_HOST: "10.0.0.1",
      RELIGHT_PORT: "tcp://10.0.0.1:8001",
      RELIGHT_COORDINATOR_PORT_8001_TCP_ADDR: "10.0.0.1",
      RELIGHT_COORDINATOR_SERVICE_PORT_GRPC: "8001",
      RELIGHT_CONFIG: "x.toml",
      OTHER: "ignored",
    };
    assert.equal(loadTable(table, sources({ environment })).values["part.workers"], 2);
  });

  for (const [what, content, want] of [
    ["TOML that does not parse", "[part\n", /Cannot read the file: .*relight.toml:1:/],
    ["a key twice", "[part]\non = true\non = true\n", /Cannot read the file/],
    ["a setting outside a table", "on = true\n", /outside a table.*relight.toml:1/],
    ["an unknown table", "[prat]\non = true\n", /prat\.on +No such setting: nearest is part\.on/],
    ["a table as value", "[part.on]\nx = 1\n", /part\.on +Cannot read the value/],
    ["a fraction", "[part]\nworkers = 1.5\n", /part\.workers +Cannot read the value/],
    ["a date", "[part]\ndir = 2020-01-01\n", /part\.dir +Cannot read the value/],
    ["a list for one value", '[part]\nsize = ["1B", "2B"]\n', /part\.size +Cannot take a list/],
    ["nesting without end", `[part]\non = ${"[".repeat(10_000)}`, /Cannot read the file/],
    ["a name of Object", '[part]\n__proto__ = "x"\n', /__proto__ +No such setting/],
    ["a group of Object", '[constructor]\nname = "x"\n', /constructor\.name +No such setting/],
  ] as const) {
    test(`refuses ${what} in the file`, () => {
      assert.match(failure(file(content)).message.replaceAll("\n", " "), want);
    });
  }
});

describe("schema", () => {
  const keys = Object.keys(schema);

  test("derives distinct names for every key, none of them reserved", () => {
    const flags = keys.map(flagName);
    const variables = keys.map(variableName);
    assert.equal(new Set(flags).size, keys.length);
    assert.equal(new Set(variables).size, keys.length);
    for (const variable of variables) {
      assert.ok(!Object.hasOwn(otherVariables, variable) && !isServiceLink(variable), variable);
    }
  });

  test("derives short flags that collide with no long one and no common one", () => {
    const taken = new Set([...keys.map(flagName), "--config", "--json", "--help", "--version"]);
    for (const key of keys) assert.ok(!taken.has(shortFlagName(key)), key);
  });

  test("spells every key as group.name in snake case", () => {
    for (const key of keys) assert.match(key, /^[a-z]+\.[a-z0-9]+(?:_[a-z0-9]+)*$/);
  });

  test("has a fallback that its own kind reads, for every key", () => {
    const { config } = load(sources({ environment: { HOME: "/home/me" } }));
    for (const [key, value] of Object.entries(config)) assert.notEqual(value, undefined, key);
    assert.equal(config["coordinator.stale_after"], 90_000);
    assert.equal(config["coordinator.remove_after"], 3_600_000);
    assert.deepEqual(config["coordinator.address"], { host: "127.0.0.1", port: 8001 });
  });

  test("keeps state where XDG says, else below HOME, else in /var/lib", () => {
    const at = (environment: Record<string, string>) =>
      load(sources({ environment })).config["state.dir"];
    assert.equal(at({ XDG_STATE_HOME: "/s", HOME: "/h" }), "/s/relight");
    assert.equal(at({ XDG_STATE_HOME: "relative", HOME: "/h" }), "/h/.local/state/relight");
    assert.equal(at({}), "/var/lib/relight");
  });

  test("puts the store below the state directory that is in force", () => {
    const { config } = load(sources({ environment: { RELIGHT_STATE_DIR: "/s" } }));
    assert.equal(config["coordinator.store_dir"], "/s/coordinator");
  });

  test("describes every key with all its spellings", () => {
    const row = describeTable(schema).find((one) => one.key === "agent.readers_max");
    assert.deepEqual(row, {
      key: "agent.readers_max",
      flag: "--agent-readers-max",
      variable: "RELIGHT_AGENT_READERS_MAX",
      wants: "a whole number from 1 to 1024",
      fallback: "8",
      about: schema["agent.readers_max"].about,
    });
  });
});

describe("readFallback()", () => {
  test("gives null for a setting that nobody needs to give", () => {
    const known = { environment: {}, text: () => "" };
    assert.equal(readFallback(table["part.dir"], known), null);
  });
});
