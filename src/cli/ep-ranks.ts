// SPDX-License-Identifier: Apache-2.0
// The ranks of one group as processes of this one, which is their coordinator and notices their deaths:
// for `relight ep demo` and bench/ep.ts. The ranks themselves are ep-rank-worker.ts.

import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LocalGroup, type LocalSession } from "../elastic/local.ts";
import type { OperationRequest } from "../elastic/operation.ts";
import { RelightError } from "../errors.ts";
import { workerUrl } from "../platform/worker-url.ts";
import type {
  FromRank,
  RankShape,
  RankSpec,
  RankUse,
  StepRecord,
  ToldEvent,
  ToRank,
} from "./ep-link.ts";

export interface RanksOptions {
  readonly backend: "cuda" | "fake";
  readonly deviceCount: number;
  readonly shape: RankShape;
  readonly timeoutMs: number;
  readonly blasFile: string | null;
  readonly stepsPerRun: number;
  readonly comesBack: boolean;
  /** Blocks of each launch; all ranks of one GPU together at most one an SM. */
  readonly blocks: number;
}

export interface TimedEvent {
  readonly atMs: number;
  readonly event: ToldEvent;
}

/** One rank's process, and what it has told. */
export class RankProcess {
  readonly number: number;
  readonly memberId: string;
  readonly ordinal: number;
  readonly startedAtMs = nowMs();
  readonly phases: { readonly name: string; readonly atMs: number }[] = [];
  readonly events: TimedEvent[] = [];
  readonly steps: StepRecord[] = [];
  readonly uses: RankUse[] = [];
  readonly exited: Promise<void>;
  failure: { readonly code: string; readonly message: string } | null = null;
  /** When its channel closed: the first sign of its death. */
  hungUpAtMs: number | null = null;
  exitedAtMs: number | null = null;
  session: LocalSession | null = null;
  readonly #child: ChildProcess;

  constructor(child: ChildProcess, spec: RankSpec) {
    this.#child = child;
    this.number = spec.number;
    this.memberId = spec.memberId;
    this.ordinal = spec.ordinal;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.exited = promise;
    // A message that it did not live to read; its exit says the rest.
    child.on("error", () => {});
    child.once("exit", () => {
      this.exitedAtMs = nowMs();
      resolve();
    });
    this.send({ to: "start", spec });
  }

  get slot(): number | null {
    return this.session?.seat?.slot ?? null;
  }

  /** What it says of itself; what it says to its group is the caller's to pass on. */
  hear(message: Exclude<FromRank, { from: "join" | "report" }>): void {
    switch (message.from) {
      case "event":
        this.events.push({ atMs: message.atMs, event: message.event });
        return;
      case "phase":
        this.phases.push({ name: message.name, atMs: message.atMs });
        return;
      case "steps":
        this.steps.push(...message.steps);
        this.uses.push(message.use);
        return;
      case "failed":
        this.failure = { code: message.code, message: message.message };
        return;
    }
  }

  get isAlive(): boolean {
    return this.exitedAtMs === null;
  }

  send(message: ToRank): void {
    if (this.#child.connected) this.#child.send(message);
  }

  signal(name: "SIGKILL" | "SIGSTOP" | "SIGCONT"): void {
    this.#child.kill(name);
  }
}

/** A process that waits for its specification. */
export function spawnRank(): ChildProcess {
  const program = workerUrl(new URL("./ep-rank-worker.ts", import.meta.url));
  return spawn(process.execPath, [program.pathname], {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
}

export class Ranks implements AsyncDisposable {
  readonly group: LocalGroup;
  readonly options: RanksOptions;
  /** All that were ever started, in that order. */
  readonly all: RankProcess[] = [];
  readonly #directory = mkdtempSync(join(tmpdir(), "relight-ep-"));

  constructor(options: RanksOptions) {
    this.options = options;
    const clock = {
      now: () => nowMs(),
      after: (ms: number, act: () => void) => {
        const timer = setTimeout(act, ms);
        return () => clearTimeout(timer);
      },
    };
    this.group = new LocalGroup({ name: options.shape.group, clock });
  }

  get alive(): RankProcess[] {
    return this.all.filter(({ isAlive }) => isAlive);
  }

  /** Starts processes that ask for a seat; an operation lets them in. */
  start(count: number): RankProcess[] {
    return Array.from({ length: count }, () => this.#startOne());
  }

  /** Begins an operation and waits until it has ended. @throws conflict when it was aborted. */
  async operate(
    request: Partial<OperationRequest> & Pick<OperationRequest, "kind">,
    signal: AbortSignal,
  ): Promise<void> {
    await this.until(() => this.group.keeper.group !== null, "a rank that asks for a seat", signal);
    const operationId = randomUUID();
    const whole = { ranks: 0, remove: [], expectedEpoch: null, confirmsDeath: false };
    await this.group.begin({ ...whole, timeoutMs: 120_000, ...request, operationId });
    await this.until(() => this.#ended(operationId), `operation ${operationId}`, signal);
    const operation = this.group.keeper.group?.finished.find(
      (one) => one.request.operationId === operationId,
    );
    if (operation?.phase === "done") return;
    throw new RelightError(
      "conflict",
      `Cannot finish ${request.kind}: ${operation?.error?.message ?? "it was aborted"}`,
    );
  }

  /** Polls; the ranks' words come between two looks. @throws what a rank ended with, deadline_exceeded */
  async until(
    isSo: () => boolean,
    what: string,
    signal: AbortSignal,
    msMax = 120_000,
  ): Promise<void> {
    const until = nowMs() + msMax;
    while (!isSo()) {
      signal.throwIfAborted();
      const failed = this.all.find(({ failure }) => failure !== null)?.failure;
      if (failed != null)
        throw new RelightError("device_failed", `A rank ended: ${failed.message}`);
      if (nowMs() > until) {
        throw new RelightError("deadline_exceeded", `Cannot see ${what}: not within ${msMax} ms`);
      }
      await sleep(2);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const rank of this.alive) rank.signal("SIGKILL");
    await Promise.all(this.all.map(({ exited }) => exited));
    await this.group[Symbol.asyncDispose]();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #ended(operationId: string): boolean {
    const finished = this.group.keeper.group?.finished ?? [];
    return finished.some(({ request }) => request.operationId === operationId);
  }

  #startOne(): RankProcess {
    const { shape, backend, deviceCount, ...rest } = this.options;
    const number = this.all.length;
    const child = spawnRank();
    const rank = new RankProcess(child, {
      ...rest,
      ...{ backend, shape, number, directory: this.#directory },
      ordinal: this.#emptiestGpu(deviceCount),
      agentSocket: null,
      memberId: randomBytes(8).toString("hex"),
    });
    child.on("message", (message: FromRank) => this.#hear(rank, message));
    // The channel of a killed process closes before its GPU context is taken down, which takes 70 ms.
    child.once("disconnect", () => {
      rank.hungUpAtMs = nowMs();
      rank.session?.hangUp();
    });
    void rank.exited.then(() => rank.session?.close());
    this.all.push(rank);
    return rank;
  }

  #emptiestGpu(deviceCount: number): number {
    const used = (ordinal: number) => this.alive.filter((rank) => rank.ordinal === ordinal).length;
    const ordinals = Array.from({ length: deviceCount }, (_, ordinal) => ordinal);
    return ordinals.reduce((best, other) => (used(other) < used(best) ? other : best), 0);
  }

  #hear(rank: RankProcess, message: FromRank): void {
    switch (message.from) {
      case "join":
        // A rank that comes back: its last seat is quiesced by its own word.
        void rank.session?.close();
        void this.group.join(message.request).then(
          (session) => this.#carry(rank, session),
          (error: Error) => {
            rank.failure = { code: "conflict", message: error.message };
          },
        );
        return;
      case "report":
        if (rank.isAlive) rank.session?.report(message.report);
        return;
      default:
        rank.hear(message);
    }
  }

  async #carry(rank: RankProcess, session: LocalSession): Promise<void> {
    rank.session = session;
    if (!rank.isAlive) await session.close();
    for await (const command of session.commands) {
      rank.send({ to: "command", command, view: session.view });
    }
    rank.send({ to: "ended" });
  }
}

export function nowMs(): number {
  return performance.timeOrigin + performance.now();
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
