// SPDX-License-Identifier: Apache-2.0
// Starts one of the hostile programs of this folder as a process of its own and reads what it prints.

import { spawn } from "node:child_process";
import path from "node:path";
import readline from "node:readline";

export interface Hostile {
  /** Rejects when it ends before. */
  readonly firstLine: Promise<string>;
  /** Those after the first, so far. */
  lines(): readonly string[];
  /** Resolves when it has ended by itself. */
  readonly ended: Promise<void>;
  stop(): void;
}

/** @param plan a file, its one argument */
export function startHostile(script: string, plan: string): Hostile {
  const program = path.join(import.meta.dirname, `${script}.ts`);
  const child = spawn(process.execPath, [program, plan], { stdio: ["ignore", "pipe", "inherit"] });
  const lines: string[] = [];
  const first = Promise.withResolvers<string>();
  const ended = Promise.withResolvers<void>();
  readline.createInterface({ input: child.stdout }).on("line", (line) => {
    first.resolve(line);
    lines.push(line);
  });
  child.once("close", (code) => {
    first.reject(new Error(`${script} ended (${code})`));
    ended.resolve();
  });
  // Who does not wait for the first line hears of the end all the same.
  first.promise.catch(() => {});
  return {
    firstLine: first.promise,
    lines: () => lines.slice(1),
    ended: ended.promise,
    stop: () => child.kill("SIGKILL"),
  };
}
