// SPDX-License-Identifier: Apache-2.0
// `relight ep demo`: an expert group of processes on this machine's GPUs that grows, loses a rank to
// SIGKILL and lets one go while a mixture-of-experts layer runs, with every output row checked.

import { boolean, integer, text } from "../config/kinds.ts";
import type { Json } from "../core/canonical-json.ts";
import { RelightError } from "../errors.ts";
import { CudaDriver } from "../gpu/cuda.ts";
import { defineCommand } from "./command.ts";
import { nowMs, type RankProcess, Ranks, type RanksOptions } from "./ep-ranks.ts";
import { goodStepAtMs, type StretchSummary, summarise, toldAtMs } from "./ep-stats.ts";
import { formatTable, type Output } from "./output.ts";

const multiprocessors = 132;
/** On the fake GPU the same protocol runs over host memory; its speed says nothing. */
const fakeShape = { hidden: 64, inner: 32, experts: 8, topk: 2, tokens: 8 };
const gpuShape = { hidden: 2_048, inner: 1_024, experts: 32, topk: 4, tokens: 64 };

export const command = defineCommand({
  settings: [],
  flags: {
    ranks: integer({ fallback: "2", min: 1, max: 8, about: "Ranks at the start." }),
    grow_to: integer({ fallback: "4", min: 1, max: 8, about: "Ranks after the join." }),
    kill: integer({ fallback: "1", min: 0, max: 7, about: "Ranks that are killed with SIGKILL." }),
    leave: integer({ fallback: "1", min: 0, max: 7, about: "Ranks that leave in order." }),
    seconds: integer({ fallback: "3", min: 1, max: 600, about: "How long each stretch lasts." }),
    tokens: integer({ fallback: "64", min: 1, max: 4_096, about: "Tokens of each rank and step." }),
    cublas: text({ fallback: "", about: "Path of libcublas; empty: by its usual names." }),
    fake: boolean({
      fallback: "false",
      about: "Without a GPU: small sizes on host memory, to see the protocol and not the speed.",
    }),
  },
  run: async ({ flags, output, signal }) => {
    const { ranks: start, grow_to: most, kill, leave, fake } = flags;
    if (start > most || kill + leave >= most) {
      throw new RelightError(
        "usage_invalid",
        `Cannot run from ${start} to ${most} ranks, less ${kill} and ${leave}: wanted one that stays`,
      );
    }
    const deviceCount = fake ? 1 : await countGpus();
    const sizes = fake ? fakeShape : { ...gpuShape, tokens: flags.tokens };
    const options: RanksOptions = {
      backend: fake ? "fake" : "cuda",
      deviceCount,
      shape: {
        ...{ group: "demo", slotCount: most, redundant: 0, ...sizes },
        localExpertsMax: sizes.experts,
      },
      timeoutMs: fake ? 5_000 : 2_000,
      blasFile: flags.cublas === "" ? null : flags.cublas,
      stepsPerRun: 1,
      comesBack: false,
      blocks: deviceCount >= most ? multiprocessors : Math.floor(multiprocessors / most),
    };
    output.note(describe(options));
    await using ranks = new Ranks(options);
    const demo = new Demo(ranks, { output, signal, ms: 1_000 * flags.seconds });
    await demo.begin(start);
    if (most > start) await demo.grow(most);
    if (kill > 0) await demo.kill(kill);
    if (leave > 0) await demo.letGo(leave);
    return demo.end();
  },
});

class Demo {
  readonly #ranks: Ranks;
  readonly #output: Output;
  readonly #signal: AbortSignal;
  readonly #ms: number;
  readonly #stretches: { readonly what: string; readonly summary: StretchSummary }[] = [];
  readonly #moments: { readonly what: string; readonly ms: number }[] = [];

  constructor(
    ranks: Ranks,
    {
      output,
      signal,
      ms,
    }: { readonly output: Output; readonly signal: AbortSignal; readonly ms: number },
  ) {
    this.#ranks = ranks;
    this.#output = output;
    this.#signal = signal;
    this.#ms = ms;
  }

  async begin(count: number): Promise<void> {
    this.#ranks.start(count);
    await this.#ranks.operate({ kind: "scale", ranks: count }, this.#signal);
    await this.#good(nowMs());
    await this.#stretch(`${count} ranks`);
  }

  async grow(to: number): Promise<void> {
    const began = nowMs();
    const joiners = this.#ranks.start(to - this.#members().length);
    await this.#ranks.operate({ kind: "scale", ranks: to }, this.#signal);
    await this.#good(nowMs());
    this.#add(`joining, to ${to}`, began);
    for (const { startedAtMs, phases } of joiners) {
      const steps = phases.find(({ name }) => name === "first step");
      if (steps !== undefined)
        this.#moment("process start to first good step", steps.atMs - startedAtMs);
    }
    await this.#stretch(`${to} ranks`);
  }

  async kill(count: number): Promise<void> {
    const victims = this.#members().slice(-count);
    const began = nowMs();
    for (const victim of victims) victim.signal("SIGKILL");
    const rest = this.#members().filter((rank) => !victims.includes(rank));
    const masked = () => rest.every((rank) => toldAtMs(rank, "died", began) !== null);
    await this.#ranks.until(masked, "every survivor's mask", this.#signal);
    const noticed = Math.min(...victims.map(({ hungUpAtMs }) => hungUpAtMs ?? nowMs()));
    const lastMask = Math.max(...rest.map((rank) => toldAtMs(rank, "died", began) ?? 0));
    this.#moment("kill to death noticed", noticed - began);
    this.#moment("death noticed to last survivor masked", lastMask - noticed);
    const { experts } = this.#ranks.options.shape;
    await this.#good(lastMask, experts);
    const next = rest.map((rank) => goodStepAtMs(rank, lastMask, experts) ?? 0);
    this.#moment("kill to the next good step of every survivor", Math.max(...next) - began);
    await this.#ranks.until(() => this.#lost() === 0, "every expert owned again", this.#signal);
    await this.#good(lastMask);
    const whole = rest.map((rank) => goodStepAtMs(rank, lastMask) ?? 0);
    this.#moment("kill to the next step with every expert", Math.max(...whole) - began);
    this.#add(`${count} killed`, began);
    await this.#stretch(`${this.#members().length} ranks`);
  }

  async letGo(count: number): Promise<void> {
    const began = nowMs();
    const remove = this.#members()
      .slice(0, count)
      .flatMap(({ slot }) => (slot === null ? [] : [slot]));
    await this.#ranks.operate({ kind: "remove", remove }, this.#signal);
    await this.#good(nowMs());
    this.#add(`${count} leaving`, began);
    await this.#stretch(`${this.#members().length} ranks`);
  }

  end(): number {
    const all = summarise(this.#ranks.all, { fromMs: 0, toMs: Number.POSITIVE_INFINITY });
    const facts = {
      isFake: this.#ranks.options.backend === "fake",
      stretches: this.#stretches.map(({ what, summary }) => ({ what, ...summary })),
      moments: this.#moments,
      rows: all.rows,
      wrong: all.wrong,
      faulty: all.faulty,
    } satisfies Json;
    this.#output.result(facts, () => this.#text(all));
    return all.wrong === 0 ? 0 : 1;
  }

  #members(): RankProcess[] {
    return this.#ranks.alive.filter(
      (rank) => rank.slot !== null && toldAtMs(rank, "ended", 0) === null,
    );
  }

  #lost(): number {
    return this.#ranks.group.keeper.group?.placement.filter((one) => one.length === 0).length ?? 0;
  }

  /** Every member has finished a good step after that moment. */
  async #good(afterMs: number, missingMax = 0): Promise<void> {
    const isSo = () =>
      this.#members().every((rank) => goodStepAtMs(rank, afterMs, missingMax) !== null);
    await this.#ranks.until(isSo, "a good step of every rank", this.#signal);
  }

  async #stretch(what: string): Promise<void> {
    const fromMs = nowMs();
    await this.#ranks.until(() => nowMs() >= fromMs + this.#ms, what, this.#signal, 2 * this.#ms);
    this.#add(what, fromMs);
  }

  #add(what: string, fromMs: number): void {
    const summary = summarise(this.#ranks.all, { fromMs, toMs: nowMs() });
    this.#stretches.push({ what, summary });
    this.#output.note(row(what, summary).join("  "));
  }

  #moment(what: string, ms: number): void {
    this.#moments.push({ what, ms });
    this.#output.note(`  ${what}: ${ms.toFixed(1)} ms`);
  }

  #text(all: StretchSummary): string {
    const head = [
      "",
      "tokens/s",
      "median step",
      "worst step",
      "rows checked",
      "wrong",
      "to do again",
    ];
    const rows = this.#stretches.map(({ what, summary }) => row(what, summary));
    const end = `${all.rows} rows checked, ${all.wrong} wrong; ${all.faulty} steps told that they were faulty`;
    return `${formatTable([head, ...rows])}\n${end}`;
  }
}

function row(what: string, summary: StretchSummary): string[] {
  const { tokensPerSecond, medianMs, worstMs, rows, wrong, faulty } = summary;
  const ms = (value: number) => `${value.toFixed(2)} ms`;
  const numbers = [Math.round(tokensPerSecond).toLocaleString("en"), ms(medianMs), ms(worstMs)];
  return [what, ...numbers, String(rows), String(wrong), String(faulty)];
}

function describe({ backend, deviceCount, shape }: RanksOptions): string {
  const { hidden, inner, experts, topk, tokens, slotCount } = shape;
  const where =
    backend === "fake"
      ? "FAKE GPU (host memory: the protocol is real, the speed is not)"
      : `${deviceCount} GPUs${deviceCount < slotCount ? ", several ranks on one: slow" : ""}`;
  return `${where}; hidden ${hidden}, inner ${inner}, ${experts} experts, top ${topk}, ${tokens} tokens a rank`;
}

/** @throws device_absent with the way out. */
async function countGpus(): Promise<number> {
  await using driver = new CudaDriver();
  try {
    return (await driver.devices()).length;
  } catch (cause) {
    throw new RelightError(
      "device_absent",
      "Cannot run the demo: this machine has no GPU; --fake runs it small on host memory",
      { cause },
    );
  }
}
