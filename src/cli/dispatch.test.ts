// SPDX-License-Identifier: Apache-2.0
// What a command line writes, where, and with which exit code.

import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { RelightError } from "../errors.ts";
import { type Command, defineCommand } from "./command.ts";
import { type CommandEntry, commands } from "./commands.ts";
import { dispatch } from "./dispatch.ts";

let directory = "";
before(async () => {
  directory = await mkdtemp(join(tmpdir(), "relight-dispatch-"));
});
after(() => rm(directory, { recursive: true }));

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

async function ended(
  argv: readonly string[],
  given: { environment?: Record<string, string>; table?: Record<string, CommandEntry> } = {},
): Promise<Ended> {
  const written = { out: "", err: "" };
  const code = await dispatch(argv, given.table ?? commands, {
    environment: { HOME: directory, ...given.environment },
    workingDirectory: directory,
    streams: {
      out: (text) => {
        written.out += text;
      },
      err: (text) => {
        written.err += text;
      },
      isErrTerminal: false,
    },
    version: "1.2.3",
    now: () => 0,
    cancelSignal: () => new AbortController().signal,
  });
  return { code, ...written };
}

function tableOf(run: Command["run"]): Record<string, CommandEntry> {
  return {
    probe: { summary: "For the test.", load: async () => ({ command: defineCommand({ run }) }) },
  };
}

describe("dispatch()", () => {
  test("writes results to standard output and nothing else there", async () => {
    const { code, out, err } = await ended(["config", "show", "--json"]);
    assert.equal(code, 0);
    assert.equal(err, "");
    assert.equal(JSON.parse(out).settings.length > 10, true);
  });

  test("tells its version, its commands and a command's flags", async () => {
    assert.equal((await ended(["--version"])).out, "1.2.3\n");
    assert.match((await ended([])).out, /relight config check/);
    assert.match((await ended(["config"])).out, /relight config check/);
    assert.doesNotMatch((await ended(["config", "--help"])).out, /relight doctor/);
    assert.match((await ended(["help", "config", "show"])).out, /--agent-readers-max=N/);
    assert.match((await ended(["config", "show", "-h"])).out, /--agent-readers-max=N/);
  });

  test("refuses an unknown command with the nearest one", async () => {
    const { code, err } = await ended(["config", "shwo"]);
    assert.equal(code, 2);
    assert.match(err, /no such command: nearest is config show/);
    assert.equal((await ended(["--nope"])).code, 2);
  });

  test("gives a thrown error as text or one JSON line, and its exit code", async () => {
    const table = tableOf(async () => {
      throw new RelightError("store_unavailable", "Cannot list: no answer", { details: { n: 1 } });
    });
    const text = await ended(["probe"], { table });
    assert.equal(text.code, 10);
    assert.match(text.err, /^error: Cannot list: no answer\n {2}code store_unavailable: /);
    const json = await ended(["probe", "--json"], { table });
    const { error } = JSON.parse(json.err);
    assert.equal(json.code, 10);
    assert.deepEqual(
      [error.code, error.details, error.retry],
      ["store_unavailable", { n: 1 }, "later"],
    );
  });

  test("gives what somebody else threw as internal", async () => {
    const table = tableOf(async () => {
      throw new TypeError("oops");
    });
    const { code, err } = await ended(["probe"], { table });
    assert.equal(code, 70);
    assert.match(err, /code internal/);
  });

  test("reports wrong flags, variables and file entries in one list, and runs nothing", async () => {
    await writeFile(join(directory, "bad.toml"), '[agent]\nworkers = "none"\n');
    const environment = { RELIGHT_LOG_LEVLE: "info" };
    const { code, err } = await ended(["config", "check", "--config=bad.toml", "--nope"], {
      environment,
    });
    assert.equal(code, 2);
    assert.match(err, /3 settings are wrong/);
    for (const part of ["--nope", "RELIGHT_LOG_LEVLE", "bad.toml:2"])
      assert.ok(err.includes(part), part);
  });

  test("calls it usage when only the words are wrong", async () => {
    const { err } = await ended(["config", "check", "--nope", "--json"]);
    assert.equal(JSON.parse(err).error.code, "usage_invalid");
  });

  test("reads ./relight.toml when there is one, and a flag before it", async () => {
    await writeFile(join(directory, "relight.toml"), "[agent]\nworkers = 5\nreaders_max = 6\n");
    const { out } = await ended(["config", "show", "--json", "--agent-workers=7"]);
    await rm(join(directory, "relight.toml"));
    const { file, settings } = JSON.parse(out);
    const of = (key: string) => settings.find((row: { key: string }) => row.key === key);
    assert.equal(file, "relight.toml");
    assert.deepEqual(of("agent.workers"), {
      key: "agent.workers",
      value: "7",
      origin: "flag",
      from: "--agent-workers",
    });
    assert.equal(of("agent.readers_max").from, "relight.toml:3");
  });

  test("stops when a file that was named cannot be read", async () => {
    const named = await ended(["config", "check", "--config=absent.toml"]);
    assert.match(named.err, /ENOENT {3}\(--config\)/);
    const environment = { RELIGHT_CONFIG: "absent.toml" };
    assert.match(
      (await ended(["config", "check"], { environment })).err,
      /ENOENT {3}\(RELIGHT_CONFIG\)/,
    );
  });

  test("writes JSON log lines where standard error is no terminal", async () => {
    const table = tableOf(async ({ log }) => {
      log.with({ node: "n1" }).warn("cold_start", { code: "no_source" });
      return 0;
    });
    const line = JSON.parse((await ended(["probe"], { table })).err);
    assert.deepEqual(line, {
      level: "warn",
      time: "1970-01-01T00:00:00.000Z",
      node: "n1",
      code: "no_source",
      event: "cold_start",
    });
  });
});

describe("relight doctor", () => {
  test("fails with the coordinator's code when nobody listens, and names every check", async () => {
    const argv = [
      "doctor",
      "--json",
      "--coordinator-address=127.0.0.1:1",
      `--state-dir=${directory}/s`,
    ];
    const { code, out } = await ended(argv);
    const { ok, checks } = JSON.parse(out);
    const of = (name: string) => checks.find((one: { check: string }) => one.check === name);
    assert.equal(code, 18);
    assert.equal(ok, false);
    assert.equal(of("coordinator").code, "coordinator_unreachable");
    assert.notEqual(of("state directory").status, "fail");
  });

  test("names a state directory whose place is taken by a file", async () => {
    await writeFile(join(directory, "taken"), "");
    const { out } = await ended(["doctor", "--json", `--state-dir=${directory}/taken/s`]);
    const found = JSON.parse(out).checks.find(
      (one: { check: string }) => one.check === "state directory",
    );
    assert.equal(found.code, "target_obstructed");
  });
});
