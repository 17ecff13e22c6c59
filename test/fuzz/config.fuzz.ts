// SPDX-License-Identifier: Apache-2.0
// The configuration file and the environment, as anybody may have written them.

import assert from "node:assert/strict";
import { load } from "../../src/config/load.ts";
import { schema } from "../../src/config/schema.ts";
import { showConfig } from "../../src/config/show.ts";
import type { FuzzTarget } from "../support/fuzz.ts";

const nobody = { flags: [], environment: {}, file: null, workingDirectory: "/w", problems: [] };

const file = `[agent]
workers = 4
advertise = "http://h:1"
[run]
cache = ["a=/x", "b=y"]
publish = false
budget = "1.5min"
`;

export const targets: readonly FuzzTarget[] = [
  {
    name: "load() of a file",
    seeds: [file, "", '[coordinator]\naddress = "[::1]:8001"\n'],
    run: (bytes) => {
      const text = Buffer.from(bytes).toString("utf8");
      const loaded = load({ ...nobody, file: { path: "relight.toml", text } });
      // Whatever was accepted can be written down and is read as the same again.
      const given = showConfig(loaded).filter((row) => row.origin === "file");
      const flags = given.map(({ key, value }) => ({
        key,
        name: key,
        texts: [value ?? []].flat(),
      }));
      assert.deepEqual(
        load({ ...nobody, flags }).config,
        load({ ...nobody, file: { path: "relight.toml", text } }).config,
      );
    },
  },
  {
    name: "load() of the environment",
    seeds: ["RELIGHT_AGENT_WORKERS=4", "RELIGHT_RUN_CACHE=a=/x,b=/y", "RELIGHT_LOG_LEVEL=warn"],
    run: (bytes) => {
      const lines = Buffer.from(bytes).toString("utf8").split("\n");
      const environment = Object.fromEntries(lines.map((line) => line.split(/=(.*)/s, 2)));
      const { config } = load({ ...nobody, environment });
      assert.deepEqual(Object.keys(config), Object.keys(schema));
    },
  },
];
