// SPDX-License-Identifier: Apache-2.0
// The engine's process: started with our own standard streams, told every signal that we are told,
// watched until it is healthy and until it ends.

import { type ChildProcess, spawn } from "node:child_process";
import os from "node:os";
import type { Environment } from "../artifacts/family.ts";
import { optionOf } from "../artifacts/identity.ts";
import { RelightError } from "../errors.ts";
import type { Clock } from "../platform/clock.ts";
import { errnoOf } from "../platform/node-errors.ts";

const forwarded = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"] as const;
const pollMs = 100;
const answerMsMax = 2_000;

const startErrors: Readonly<Record<string, string>> = {
  ENOENT: "there is no such program (ENOENT)",
  EACCES: "it may not be executed (EACCES)",
};

export interface Engine extends Disposable {
  /** The exit code, or 128 and the signal's number, as a shell says it. */
  readonly exited: Promise<number>;
  /** Fires when the process has ended. */
  readonly ended: AbortSignal;
  /** Fires at the first signal that asks the engine to stop. */
  readonly stopping: AbortSignal;
}

/** What says where keys lie, how to join a fleet, or is a token itself. */
const secretVariable = /^RELIGHT_(TRUST_|JOIN|.*TOKEN)/;

/** The environment without what only the agent may know: nothing that signs is reachable from the engine's. */
export function withoutSecrets(env: Environment): Environment {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !secretVariable.test(name)));
}

/** @throws RelightError `engine_start_failed` when the command cannot be started. */
export async function startEngine(command: readonly string[], env: Environment): Promise<Engine> {
  const [program = "", ...args] = command;
  // Before the engine exists: a signal in between would end us and leave the engine without an owner.
  const signals = holdSignals();
  const child = spawn(program, args, { stdio: "inherit", env: env as NodeJS.ProcessEnv });
  const ended = new AbortController();
  const exited = new Promise<number>((resolve) => {
    child.once("exit", (code, signal) => {
      ended.abort(new RelightError("cancelled", "The engine has ended"));
      resolve(code ?? 128 + (signal === null ? 0 : os.constants.signals[signal]));
    });
  });
  try {
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", reject);
    });
  } catch (cause) {
    signals[Symbol.dispose]();
    const errno = errnoOf(cause);
    const reason = startErrors[errno] ?? errno;
    throw new RelightError("engine_start_failed", `Cannot start "${program}": ${reason}`, {
      cause,
    });
  }
  signals.forwardTo(child);
  const stop = signals[Symbol.dispose];
  return { exited, ended: ended.signal, stopping: signals.stopping, [Symbol.dispose]: stop };
}

interface HeldSignals extends Disposable {
  readonly stopping: AbortSignal;
  /** What came meanwhile is forwarded now, what comes later at once. */
  forwardTo(child: ChildProcess): void;
}

function holdSignals(): HeldSignals {
  const stopping = new AbortController();
  const held: NodeJS.Signals[] = [];
  let engine: ChildProcess | null = null;
  const handlers = forwarded.map((signal) => {
    const handler = () => {
      if (!signal.startsWith("SIGUSR")) {
        stopping.abort(new RelightError("cancelled", `Stopped by ${signal}`));
      }
      if (engine === null) held.push(signal);
      // A terminal sends its own signals to the whole foreground group, the engine included.
      else if (!(process.stdin.isTTY && (signal === "SIGINT" || signal === "SIGQUIT"))) {
        engine.kill(signal);
      }
    };
    process.on(signal, handler);
    return [signal, handler] as const;
  });
  return {
    stopping: stopping.signal,
    forwardTo: (child) => {
      engine = child;
      for (const signal of held.splice(0)) child.kill(signal);
    },
    [Symbol.dispose]: () => {
      for (const [signal, handler] of handlers) process.off(signal, handler);
    },
  };
}

/**
 * Resolves when `url` answers 2xx. Redirects are not followed: they could lead anywhere.
 * @throws the signal's reason when it fires first
 */
export async function waitUntilHealthy(
  url: string,
  clock: Clock,
  signal: AbortSignal,
): Promise<void> {
  while (!(await isHealthy(url, signal))) await clock.sleep(pollMs, signal);
}

async function isHealthy(url: string, signal: AbortSignal): Promise<boolean> {
  signal.throwIfAborted();
  try {
    const response = await fetch(url, {
      redirect: "manual",
      signal: AbortSignal.any([signal, AbortSignal.timeout(answerMsMax)]),
    });
    await response.body?.cancel();
    return response.ok;
  } catch {
    // Refused, reset or slow: not healthy yet. The caller's signal ends the wait.
    return false;
  }
}

/** Where vLLM and SGLang answer, from the command's own options; null when the engine is another. */
export function defaultHealthUrl(framework: string, command: readonly string[]): string | null {
  const port = optionOf(command, ["--port"]) ?? { vllm: "8000", sglang: "30000" }[framework];
  return port !== undefined && /^\d{1,5}$/.test(port) && framework !== ""
    ? `http://127.0.0.1:${port}/health`
    : null;
}
