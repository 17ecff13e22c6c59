// SPDX-License-Identifier: Apache-2.0
// What the documentation tells people to type exists: commands with their flags, npm scripts, links.

import assert from "node:assert/strict";
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { flagTargets } from "../../src/cli/args.ts";
import { commands } from "../../src/cli/commands.ts";
import { schema } from "../../src/config/schema.ts";
import { codes } from "../../src/errors.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const pages = globSync(["*.md", "docs/**/*.md"], { cwd: root }).sort();

function textOf(page: string): string {
  return readFileSync(join(root, page), "utf8");
}

/** Command lines in blocks of shell and in inline code; forms with placeholders for words are left out. */
function commandLines(text: string): string[] {
  const blocks = [...text.matchAll(/^```(?:sh|bash|console)\n(.*?)^```/gms)].map(
    ([, body = ""]) => body,
  );
  const lines = blocks.flatMap((body) => body.replaceAll(/[ \t]*\\\n\s*/g, " ").split("\n"));
  const typed = lines.map((line) =>
    line.replace(/\s+#.*$/, "").replace(/^\s*(?:\$ )?(?:npx )?/, ""),
  );
  const inline = [...text.matchAll(/`(relight [^`\n]+)`/g)].map(([, line = ""]) => line);
  return [...typed, ...inline]
    .filter((line) => /^relight\s/.test(line))
    .filter((line) => !/\[|\.\.\.|\||\bCOMMAND\b|\bNOUN\b/.test(line));
}

/** Why the line cannot be typed, or null. */
async function faultOf(line: string): Promise<string | null> {
  const [, ...all] = line.trim().split(/\s+/);
  const end = all.indexOf("--");
  const words = end === -1 ? all : all.slice(0, end);
  if (words.every((word) => ["--help", "--version", "-h"].includes(word))) return null;
  const name = [3, 2, 1]
    .map((length) => words.slice(0, length).join(" "))
    .find((one) => one in commands);
  const isGroup = Object.keys(commands).some((one) => one.startsWith(`${words[0]} `));
  if (name === undefined) return isGroup && words.length === 1 ? null : "no such command";
  const entry = commands[name];
  assert.ok(entry !== undefined);
  const known = flagTargets({ name, command: (await entry.load()).command });
  const unknown = words
    .filter((word) => word.startsWith("--"))
    .map((word) => word.split("=", 1)[0] ?? word)
    .find((flag) => !known.has(flag));
  return unknown === undefined ? null : `no flag ${unknown}`;
}

async function faultsIn(text: string): Promise<string[]> {
  const faults: string[] = [];
  for (const line of commandLines(text)) {
    const fault = await faultOf(line);
    if (fault !== null) faults.push(`${line}: ${fault}`);
  }
  return faults;
}

describe("documentation", () => {
  for (const page of pages) {
    test(`${page} names commands and flags that exist`, async () => {
      assert.deepEqual(await faultsIn(textOf(page)), []);
    });

    test(`${page} names npm scripts that exist`, () => {
      const { scripts } = JSON.parse(textOf("package.json"));
      const named = [...textOf(page).matchAll(/npm run (?:--silent )?([a-z]+)\b/g)].map(
        (one) => one[1],
      );
      assert.deepEqual(
        named.filter((name) => name !== undefined && !Object.hasOwn(scripts, name)),
        [],
      );
    });

    test(`${page} links to files that exist`, () => {
      const links = [...textOf(page).matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)].map(
        ([, to = ""]) => to,
      );
      assert.deepEqual(
        links.filter((to) => !existsSync(join(root, dirname(page), to))),
        [],
      );
    });
  }

  test("what error codes and settings advise exists", async () => {
    const advice = [
      ...Object.values(codes).flatMap((facts) => [facts.means, facts.next]),
      ...Object.values(schema).map((setting) => setting.about),
    ];
    assert.deepEqual(await faultsIn(advice.join("\n")), []);
    const keys = advice.flatMap((text) =>
      [...text.matchAll(/`([a-z]+\.[a-z_]+)`/g)].map((one) => one[1]),
    );
    assert.deepEqual(
      keys.filter((key) => key !== undefined && !Object.hasOwn(schema, key)),
      [],
    );
  });

  test("the check itself finds a command, a flag, and passes what is right", async () => {
    const text =
      "```sh\nrelight config shwo\nrelight config check --nope=1 \\\n  --json\nrelight doctor --json # yes\n```\n";
    assert.deepEqual(await faultsIn(`${text} \`relight run --model=M -- vllm --x\``), [
      "relight config shwo: no such command",
      "relight config check --nope=1 --json: no flag --nope",
    ]);
  });
});
