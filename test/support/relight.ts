// SPDX-License-Identifier: Apache-2.0
// Runs `relight` as a user does, as a process of its own, and gives tests what it printed.

import { type ChildProcess, spawn } from "node:child_process";
import net from "node:net";
import path from "node:path";

const main = path.resolve(import.meta.dirname, "../../src/cli/main.ts");

export interface RelightProcess extends AsyncDisposable {
  readonly child: ChildProcess;
  /** Standard output and standard error so far, in the order of arrival. */
  readonly output: () => string;
  /** The exit code, or the signal's name. */
  readonly exited: Promise<number | string>;
  /** Resolves when nothing more will be printed. */
  readonly drained: Promise<void>;
  /** Resolves when the output matches; rejects when the process ends or `msMax` pass before. */
  printed(pattern: RegExp, msMax?: number): Promise<RegExpExecArray>;
}

/** Killed when it goes out of scope, if it has not ended by then. */
export function relight(args: readonly string[], env: Record<string, string> = {}): RelightProcess {
  const child = spawn(process.execPath, [main, ...args], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    // A process group of its own, so that an engine that outlives its agent can be ended with it.
    detached: true,
  });
  let text = "";
  const listeners = new Set<() => void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      for (const listener of listeners) listener();
    });
  }
  const exited = new Promise<number | string>((resolve) => {
    // Not "close": an engine that outlives its agent keeps the pipes open.
    child.once("exit", (code, signal) => {
      resolve(code ?? signal ?? -1);
      for (const listener of listeners) listener();
    });
  });
  const drained = new Promise<void>((resolve) => child.once("close", () => resolve()));
  return {
    child,
    output: () => text,
    exited,
    drained,
    printed: (pattern, msMax = 30_000) =>
      new Promise((resolve, reject) => {
        const settle = (work: () => void) => {
          clearTimeout(timer);
          listeners.delete(look);
          work();
        };
        const look = () => {
          const match = pattern.exec(text);
          if (match !== null) settle(() => resolve(match));
          else if (child.exitCode !== null || child.signalCode !== null) {
            settle(() =>
              reject(
                new Error(
                  `Ended (${child.exitCode ?? child.signalCode}) before ${pattern}:\n${text}`,
                ),
              ),
            );
          }
        };
        const timer = setTimeout(
          () =>
            settle(() => reject(new Error(`Did not print ${pattern} in ${msMax} ms:\n${text}`))),
          msMax,
        );
        listeners.add(look);
        look();
      }),
    [Symbol.asyncDispose]: async () => {
      killGroup(child);
      await exited;
      child.stdout.destroy();
      child.stderr.destroy();
    },
  };
}

function killGroup(child: ChildProcess): void {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  } catch {
    // The whole group has ended by itself.
  }
}

/** Runs to the end and reads its one line of JSON. */
export async function relightJson<T>(
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<{ code: number | string; value: T; output: string }> {
  await using run = relight([...args, "--json"], env);
  const code = await run.exited;
  await run.drained;
  const isResult = (one: string) => one.startsWith("{") && !one.includes('"level"');
  const line = run.output().split("\n").find(isResult) ?? "null";
  return { code, value: JSON.parse(line) as T, output: run.output() };
}

/** A coordinator in its own process. */
export async function startTestCoordinator(
  folder: string,
  flags: readonly string[] = [],
): Promise<RelightProcess & { address: string }> {
  const coordinator = relight([
    "coordinator",
    "--listen=127.0.0.1:0",
    "--http-listen=127.0.0.1:0",
    `--store-dir=${folder}`,
    // Not the user's own, whose authority would switch the tests to TLS.
    ...(flags.some((flag) => flag.startsWith("--state-dir"))
      ? []
      : [`--state-dir=${folder}-state`]),
    ...flags,
  ]);
  const [, address = ""] = await coordinator.printed(/gRPC on (\S+)/);
  return { ...coordinator, address };
}

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
