// SPDX-License-Identifier: Apache-2.0
// Does a call cost more when the fleet is larger? Two coordinator processes on LMDB, one with 100 and one
// with 100,000 registered sources, ten to an identity in both. One client calls them in turn, call by
// call, so that whatever else the machine does meets both alike. p99 of each round, median of the
// rounds' ratios. Then calls a second with 32 in flight, and the memory that a source costs.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import {
  create,
  type DescMessage,
  type DescMethod,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import {
  P2pService,
  PublishMetadataRequestSchema,
  SourceIdentitySchema,
  SourceStatus,
} from "../src/protocol/gen/p2p_pb.ts";
import { Coordinator } from "../src/protocol/gen/relight_pb.ts";
import { channelOptions, grpcMethod } from "../src/protocol/grpc.ts";
import { sourceIdOf } from "../src/protocol/source-id.ts";
import { openLmdbStore } from "../src/store/lmdb.ts";
import { sourceHead } from "../test/support/source-head.ts";
import type { Emit } from "./main.ts";

const perIdentity = 10;
const sizes = { small: 100, large: 100_000 };
const rounds = 7;
const callsPerRound = 1_000;
const warmUpCalls = 500;
const inFlight = 32;
const throughputMs = 2_000;
// Nobody sends heartbeats here, and nothing must turn stale while it is measured.
const heartbeatTimeoutMs = 3_600_000;
const fillBatch = 1_000;

export async function run(emit: Emit): Promise<void> {
  await using stack = new AsyncDisposableStack();
  const folder = mkdtempSync(join(tmpdir(), "relight-bench-"));
  stack.defer(() => rmSync(folder, { recursive: true, force: true }));
  const small = stack.use(await startFleet(join(folder, "small"), sizes.small));
  const large = stack.use(await startFleet(join(folder, "large"), sizes.large));
  const anonymous = large.anonymousBytes() - small.anonymousBytes();
  emit({
    name: "coordinator.memory_per_source",
    value: anonymous / (sizes.large - sizes.small),
    unit: "B",
  });
  emit({ name: "coordinator.disk_per_source", value: large.storeBytes() / sizes.large, unit: "B" });
  emit({ name: "coordinator.start_with_100k", value: large.startMs, unit: "ms" });
  for (const [name, call] of Object.entries(measured)) {
    const { largeMs, smallMs, growth } = await compare(small, large, call);
    emit({ name: `coordinator.${name}.p99_100k_vs_100`, value: growth, unit: "times" });
    emit({ name: `coordinator.${name}.p99_100k`, value: largeMs, unit: "ms" });
    emit({ name: `coordinator.${name}.p99_100`, value: smallMs, unit: "ms" });
  }
  for (const [name, call] of Object.entries({ publish, list, get, update, find })) {
    emit({
      name: `coordinator.${name}.calls`,
      value: await throughput(large, call),
      unit: "calls/s",
    });
  }
}

type Call = (fleet: Fleet, index: number) => Promise<unknown>;

interface Fleet extends AsyncDisposable {
  readonly client: Client;
  readonly sourceCount: number;
  readonly startMs: number;
  /** Memory of the process itself, without the pages of the store's file. */
  anonymousBytes(): number;
  storeBytes(): number;
}

function list(fleet: Fleet, index: number): Promise<unknown> {
  const { identity } = placeOf(index, fleet);
  return unary(fleet.client, P2pService.method.listSources, {
    identity,
    statusFilter: SourceStatus.READY,
  });
}

function update(fleet: Fleet, index: number): Promise<unknown> {
  const { sourceId: mxSourceId, workerId } = placeOf(index, fleet);
  const request = { mxSourceId, workerId, status: SourceStatus.READY };
  return unary(fleet.client, P2pService.method.updateStatus, request);
}

function get(fleet: Fleet, index: number): Promise<unknown> {
  const { sourceId: mxSourceId, workerId } = placeOf(index, fleet);
  return unary(fleet.client, P2pService.method.getMetadata, { mxSourceId, workerId });
}

function publish(fleet: Fleet, index: number): Promise<unknown> {
  const { identity, workerId } = placeOf(index, fleet);
  const worker = { status: SourceStatus.READY, accelerator: "cuda" };
  return unary(fleet.client, P2pService.method.publishMetadata, { identity, worker, workerId });
}

function find(fleet: Fleet, index: number): Promise<unknown> {
  return unary(fleet.client, Coordinator.method.find, {
    identities: [placeOf(index, fleet).identity],
  });
}

const measured = { list, update };

/** Call by call in turn; the first of each pair changes, so that neither size is always second. */
async function compare(
  small: Fleet,
  large: Fleet,
  call: Call,
): Promise<{ largeMs: number; smallMs: number; growth: number }> {
  for (let index = 0; index < warmUpCalls; index++) {
    await call(small, index);
    await call(large, index);
  }
  const results: { large: number; small: number }[] = [];
  for (let round = 0; round < rounds; round++) {
    const timesMs = new Map<Fleet, number[]>([
      [small, []],
      [large, []],
    ]);
    for (let index = 0; index < callsPerRound; index++) {
      for (const fleet of index % 2 === 0 ? [small, large] : [large, small]) {
        const startedMs = performance.now();
        await call(fleet, scattered(round * callsPerRound + index));
        timesMs.get(fleet)?.push(performance.now() - startedMs);
      }
    }
    results.push({ large: p99(timesMs.get(large)), small: p99(timesMs.get(small)) });
  }
  return {
    largeMs: median(results.map((each) => each.large)),
    smallMs: median(results.map((each) => each.small)),
    growth: median(results.map((each) => each.large / each.small)),
  };
}

async function throughput(fleet: Fleet, call: Call): Promise<number> {
  let count = 0;
  const startedMs = performance.now();
  const caller = async (): Promise<void> => {
    while (performance.now() - startedMs < throughputMs) await call(fleet, scattered(count++));
  };
  await Promise.all(Array.from({ length: inFlight }, caller));
  return count / ((performance.now() - startedMs) / 1_000);
}

async function startFleet(directory: string, sourceCount: number): Promise<Fleet> {
  await fill(directory, sourceCount);
  const startedMs = performance.now();
  const program = join(import.meta.dirname, "../test/support/coordinator-process.ts");
  const words = [program, directory, "0", String(heartbeatTimeoutMs)];
  const child = spawn(process.execPath, words, { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = await once(createInterface({ input: child.stdout }), "line");
  const startMs = performance.now() - startedMs;
  const { grpc }: { readonly grpc: string } = JSON.parse(String(line));
  const client = new Client(grpc, credentials.createInsecure(), channelOptions);
  return {
    client,
    sourceCount,
    startMs,
    anonymousBytes: () => anonymousBytesOf(child),
    storeBytes: () => statSync(join(directory, "data.mdb")).size,
    [Symbol.asyncDispose]: async () => {
      client.close();
      child.kill("SIGTERM");
      await once(child, "exit");
    },
  };
}

async function fill(directory: string, sourceCount: number): Promise<void> {
  await using store = await openLmdbStore(directory);
  const updatedAtMs = Date.now();
  for (let first = 0; first < sourceCount; first += fillBatch) {
    const { signal } = new AbortController();
    const indexes = Array.from(
      { length: Math.min(fillBatch, sourceCount - first) },
      (_, at) => first + at,
    );
    const puts = indexes.map((index) => {
      const { identity, sourceId, workerId } = placeOf(index, { sourceCount });
      const worker = { status: SourceStatus.READY, accelerator: "cuda" };
      const message = create(PublishMetadataRequestSchema, { identity, worker, workerId });
      const body = toBinary(PublishMetadataRequestSchema, message);
      const times = { updatedAtMs, publishedAtMs: updatedAtMs };
      const head = sourceHead({ sourceId, workerId, modelName: identity.modelName, ...times });
      return store.put({ head, body, replaces: null, when: "committed" }, signal);
    });
    await Promise.all(puts);
  }
}

function placeOf(
  index: number,
  { sourceCount }: { readonly sourceCount: number },
): {
  identity: ReturnType<typeof create<typeof SourceIdentitySchema>>;
  sourceId: string;
  workerId: string;
} {
  const at = index % sourceCount;
  const modelName = `org/model-${Math.floor(at / perIdentity)}`;
  const identity = create(SourceIdentitySchema, {
    modelName,
    mxVersion: "0.5.0",
    dtype: "bfloat16",
    tensorParallelSize: 8,
  });
  return { identity, sourceId: sourceIdOf(identity), workerId: `worker-${at}` };
}

/** Jumps over the whole fleet, the same way in each run. */
function scattered(index: number): number {
  return (index * 7_919) % sizes.large;
}

function unary<I extends DescMessage, O extends DescMessage>(
  client: Client,
  method: DescMethod & { readonly input: I; readonly output: O },
  init: MessageInitShape<I>,
): Promise<unknown> {
  const { path, requestSerialize, responseDeserialize } = grpcMethod(method);
  return new Promise((resolve, reject) => {
    const request = create(method.input, init);
    client.makeUnaryRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      (error, response) => {
        if (error === null) resolve(response);
        else reject(error);
      },
    );
  });
}

function anonymousBytesOf({ pid }: ChildProcess): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return 1_024 * Number(/^RssAnon:\s+(\d+) kB$/m.exec(status)?.[1]);
}

function p99(timesMs: readonly number[] = []): number {
  const sorted = [...timesMs].sort((a, b) => a - b);
  return sorted[Math.ceil(0.99 * sorted.length) - 1] ?? Number.NaN;
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}
