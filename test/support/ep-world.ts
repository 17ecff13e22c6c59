// SPDX-License-Identifier: Apache-2.0
// An expert group of real processes without a GPU: a coordinator on LMDB, an agent's host of ranks, and
// ranks; all of them can be killed. Operations go over HTTP, as a launcher sends them.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "../../src/elastic/session.ts";
import type { GroupConfig } from "../../src/elastic/view.ts";
import { groupConfig } from "./ep-group.ts";
import type { EpRankLine, EpRankOptions } from "./ep-rank-process.ts";
import { type TemporaryFolder, temporaryFolder } from "./temporary-folder.ts";

/** A JSON answer of /v1/ep, in protobuf's JSON. */
export interface GroupAnswer {
  readonly epoch: number;
  readonly effective_ranks: readonly number[];
  readonly safe_to_delete_ranks: readonly number[];
  readonly lost_experts: readonly number[];
  readonly slots: readonly {
    readonly slot: number;
    readonly state: string;
    readonly incarnation: number;
    readonly member_id: string;
    readonly pid: number;
    readonly ended: string;
  }[];
  /** Absent when there never was one. */
  readonly operation?: {
    readonly operation_id: string;
    readonly phase: string;
    readonly phases: readonly { readonly phase: string; readonly at_ms: number }[];
    readonly error_code: string;
  };
}

const waitMs = 20_000;

export class EpRank {
  readonly memberId: string;
  readonly lines: EpRankLine[] = [];
  readonly child: ChildProcess;
  readonly exited: Promise<void>;
  isExited = false;

  constructor(memberId: string, child: ChildProcess) {
    this.memberId = memberId;
    this.child = child;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.exited = promise;
    child.once("exit", () => {
      this.isExited = true;
      resolve();
    });
    assert.ok(child.stdout !== null);
    createInterface({ input: child.stdout }).on("line", (line) =>
      this.lines.push(JSON.parse(line)),
    );
  }

  get slot(): number | null {
    const seat = this.lines.findLast((line) => line.type === "seat");
    return seat?.seat.slot ?? null;
  }

  /** With whom its latest good steps were. */
  get members(): string {
    return this.lines.findLast((line) => line.type === "members")?.members ?? "";
  }

  said(type: EpRankLine["type"]): boolean {
    return this.lines.some((line) => line.type === type);
  }

  async kill(): Promise<void> {
    this.child.kill("SIGKILL");
    await this.exited;
  }
}

export class EpWorld implements AsyncDisposable {
  readonly config: GroupConfig;
  readonly ranks: EpRank[] = [];
  readonly #folder: TemporaryFolder;
  #coordinator: ChildProcess | null = null;
  #host: ChildProcess | null = null;
  #grpc = "";
  #http = "";
  #names = 0;

  private constructor(config: GroupConfig) {
    this.config = config;
    this.#folder = temporaryFolder();
    mkdirSync(this.#folder.path("windows"));
  }

  static async open(change: Partial<GroupConfig> = {}): Promise<EpWorld> {
    const world = new EpWorld(groupConfig(change));
    await world.startCoordinator();
    await world.startHost();
    return world;
  }

  async startCoordinator(): Promise<void> {
    const port = this.#grpc.split(":").at(-1) ?? "0";
    const { child, line } = await start("coordinator-process.ts", [
      this.#folder.path("store"),
      port === "" ? "0" : port,
    ]);
    this.#coordinator = child;
    const { grpc, http }: { grpc: string; http: string } = JSON.parse(line);
    this.#grpc = grpc;
    this.#http = http;
  }

  /** Where the agent's host of ranks listens. */
  get socketPath(): string {
    return this.#folder.path("ep.sock");
  }

  /** For the sockets of ranks that are not of this world's own program. */
  get windowsPath(): string {
    return this.#folder.path("windows");
  }

  killCoordinator(): Promise<void> {
    return killed(this.#coordinator);
  }

  async startHost(): Promise<void> {
    const words = [this.#folder.path("ep.sock"), "node-a", this.#grpc];
    this.#host = (await start("ep-host-process.ts", words)).child;
  }

  killHost(): Promise<void> {
    return killed(this.#host);
  }

  addRank(
    slowMs: Partial<Record<Command["type"], number>> = {},
    change: Partial<GroupConfig> = {},
  ): EpRank {
    const memberId = `rank-${this.#names++}`;
    const options: EpRankOptions = {
      socketPath: this.#folder.path("ep.sock"),
      memberId,
      config: { ...this.config, ...change },
      folder: this.#folder.path("windows"),
      slowMs,
      waitMs: 3_000,
    };
    const child = run("ep-rank-process.ts", [JSON.stringify(options)]);
    const rank = new EpRank(memberId, child);
    this.ranks.push(rank);
    return rank;
  }

  rankAt(slot: number): EpRank {
    const rank = this.ranks.find((one) => one.slot === slot && !one.isExited);
    assert.ok(rank !== undefined, `nobody is at slot ${slot}`);
    return rank;
  }

  async begin(operationId: string, body: object): Promise<GroupAnswer> {
    const { status, answer } = await this.post("operations", {
      operation_id: operationId,
      ...body,
    });
    assert.equal(status, 202, JSON.stringify(answer));
    return answer as GroupAnswer;
  }

  async post(path: string, body: object): Promise<{ status: number; answer: unknown }> {
    const response = await fetch(`${this.#http}/v1/ep/${this.config.group}/${path}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(waitMs),
    });
    return { status: response.status, answer: await response.json() };
  }

  async abort(operationId: string): Promise<number> {
    const url = `${this.#http}/v1/ep/${this.config.group}/operations/${operationId}`;
    const response = await fetch(url, { method: "DELETE", signal: AbortSignal.timeout(waitMs) });
    return response.status;
  }

  async status(operationId = ""): Promise<GroupAnswer> {
    const tail = operationId === "" ? "" : `/operations/${operationId}`;
    const url = `${this.#http}/v1/ep/${this.config.group}${tail}`;
    const response = await fetch(url, { signal: AbortSignal.timeout(waitMs) });
    const answer: unknown = await response.json();
    assert.equal(response.status, 200, JSON.stringify(answer));
    return answer as GroupAnswer;
  }

  async until(what: string, isTrue: () => boolean | Promise<boolean>): Promise<void> {
    const untilMs = performance.now() + waitMs;
    while (performance.now() < untilMs) {
      if (await isTrue()) return;
      await sleep(10);
    }
    const status = await this.status().catch(String);
    const lines = this.ranks.map(({ memberId, lines: all }) => [memberId, ...all.slice(-4)]);
    assert.fail(`${what} does not come: ${JSON.stringify({ status, lines })}`);
  }

  /** Until it has been in this phase. */
  untilSeen(operationId: string, phase: string): Promise<void> {
    return this.until(`${operationId} ${phase}`, async () => {
      const { operation } = await this.status(operationId);
      return operation?.phases.some((one) => one.phase === phase) === true;
    });
  }

  /** Until it is in this phase; also when the coordinator is away for a moment. */
  untilPhase(operationId: string, phase: string): Promise<void> {
    return this.until(`${operationId} ${phase}`, async () => {
      const status = await this.status(operationId).catch(() => null);
      return status?.operation?.phase === phase;
    });
  }

  /** Brings the group to these ranks and waits until their steps are good with each other. */
  async scale(ranks: number): Promise<void> {
    // The first rank makes the group.
    await this.until("the group", () =>
      this.status().then(
        () => true,
        () => false,
      ),
    );
    const id = `scale-${this.#names}-${ranks}-${performance.now()}`;
    await this.begin(id, { kind: "OPERATION_KIND_SCALE", ranks });
    await this.untilPhase(id, "done");
    await this.untilGood(ranks);
  }

  async untilGood(count: number): Promise<void> {
    await this.until(`good steps of ${count} ranks`, async () => {
      const { effective_ranks: effective, slots } = await this.status();
      if (effective.length !== count) return false;
      const wanted = effective.map((at) => `${at}/${slots[at]?.incarnation}`).join(" ");
      return effective.every((at) => this.rankAt(at).members === wanted);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { child } of this.ranks) child.kill("SIGKILL");
    await killed(this.#host);
    await killed(this.#coordinator);
    await Promise.all(this.ranks.map(({ exited }) => exited));
    this.#folder[Symbol.dispose]();
  }
}

function run(program: string, words: readonly string[]): ChildProcess {
  const file = join(import.meta.dirname, program);
  return spawn(process.execPath, [file, ...words], { stdio: ["ignore", "pipe", "inherit"] });
}

async function start(
  program: string,
  words: readonly string[],
): Promise<{ child: ChildProcess; line: string }> {
  const child = run(program, words);
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  child.once("exit", (code) => reject(new Error(`${program} ended with ${code}`)));
  assert.ok(child.stdout !== null);
  createInterface({ input: child.stdout }).once("line", resolve);
  return { child, line: await promise };
}

async function killed(child: ChildProcess | null): Promise<void> {
  if (child === null || child.exitCode !== null || child.signalCode !== null) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  child.once("exit", () => resolve());
  child.kill("SIGKILL");
  await promise;
}
