// SPDX-License-Identifier: Apache-2.0
// Asks the engine's own Python for the versions that its caches depend on. The interpreter is found
// from the command: itself, its shebang, or the configured one. A probe that fails leaves facts
// unknown and says so; it never stops a boot.

import { execFile } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { z } from "zod";
import type { Environment } from "../artifacts/family.ts";
import { RelightError } from "../errors.ts";

const script = fileURLToPath(new URL("../../python/relight/probe.py", import.meta.url));
const outputBytesMax = 256 * 1024;
const run = promisify(execFile);

const answer = z.object({
  facts: z.record(z.string().max(64), z.string().max(1_024)),
  failures: z.record(z.string().max(64), z.string().max(1_024)),
});

export type ProbeAnswer = z.infer<typeof answer>;

export interface ProbeOptions {
  readonly command: readonly string[];
  /** Empty: found from the command. */
  readonly python: string;
  readonly framework: string;
  readonly env: Environment;
}

/** Waits for the answer until `signal` fires. @throws RelightError `probe_failed`. */
export type StartedProbe = (signal: AbortSignal) => Promise<ProbeAnswer>;

/** Asks at once, so that the answer is there when somebody waits for it; no longer than `msMax`. */
export function startProbe(options: ProbeOptions, msMax: number): StartedProbe {
  const end = new AbortController();
  const signal = AbortSignal.any([end.signal, AbortSignal.timeout(msMax)]);
  const answer = probeFacts({ ...options, signal });
  // Told to whoever waits for it.
  answer.catch(() => undefined);
  return async (until) => {
    const stop = () => end.abort(until.reason);
    until.addEventListener("abort", stop, { once: true });
    if (until.aborted) stop();
    try {
      return await answer;
    } finally {
      until.removeEventListener("abort", stop);
    }
  };
}

/**
 * @throws RelightError `probe_failed` when there is no interpreter, or it fails, answers nonsense or
 * outlasts `signal`.
 */
export async function probeFacts(
  options: ProbeOptions & { readonly signal: AbortSignal },
): Promise<ProbeAnswer> {
  const interpreter = options.python || findPython(options.command, options.env);
  if (interpreter === null) {
    throw new RelightError(
      "probe_failed",
      `Cannot find the Python of "${options.command[0] ?? ""}": it is neither Python nor a script of it`,
    );
  }
  try {
    const { stdout } = await run(interpreter, ["-E", "-s", script, options.framework], {
      env: options.env as NodeJS.ProcessEnv,
      signal: options.signal,
      maxBuffer: outputBytesMax,
      killSignal: "SIGKILL",
    });
    return answer.parse(JSON.parse(stdout.trim().split("\n").at(-1) ?? ""));
  } catch (cause) {
    if (options.signal.aborted)
      throw new RelightError(
        "probe_failed",
        `Cannot probe "${interpreter}": it did not answer in time`,
        { cause },
      );
    throw new RelightError(
      "probe_failed",
      `Cannot probe "${interpreter}": ${cause instanceof Error ? cause.message.slice(0, 300) : String(cause)}`,
      { cause },
    );
  }
}

/** The interpreter that `command` runs under, by name or shebang; null when it is not Python. */
export function findPython(command: readonly string[], env: Environment): string | null {
  const program = command[0] === undefined ? null : findProgram(command[0], env);
  if (program === null) return null;
  if (isPython(program)) return program;
  const [interpreter = "", ...words] = readShebang(program);
  if (isPython(interpreter)) return interpreter;
  const named =
    path.basename(interpreter) === "env"
      ? words.find((word) => !word.startsWith("-") && !word.includes("="))
      : undefined;
  return named !== undefined && isPython(named) ? findProgram(named, env) : null;
}

function findProgram(name: string, env: Environment): string | null {
  if (name.includes("/")) return fs.existsSync(name) ? path.resolve(name) : null;
  const folders = (env["PATH"] ?? "").split(":").filter((folder) => folder !== "");
  return (
    folders.map((folder) => path.join(folder, name)).find((file) => fs.existsSync(file)) ?? null
  );
}

function isPython(program: string): boolean {
  return /^python(\d+(\.\d+)*)?$/.test(path.basename(program));
}

function readShebang(file: string): string[] {
  const head = Buffer.alloc(512);
  const handle = fs.openSync(file, "r");
  try {
    const text = head.subarray(0, fs.readSync(handle, head, 0, head.length, 0)).toString("latin1");
    return text.startsWith("#!") ? (text.slice(2).split("\n")[0] ?? "").trim().split(/\s+/) : [];
  } finally {
    fs.closeSync(handle);
  }
}
