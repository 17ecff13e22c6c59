// SPDX-License-Identifier: Apache-2.0
// A simulated network: each node has a full-duplex link that its flows share evenly, a flow moves at
// the smaller of its two shares. That is never more than a link carries, and a little less than the
// best division would give. Only flows that touch a changed node are looked at again.

import type { Timeline, Timer } from "./timeline.ts";

export interface Node {
  readonly name: string;
  /** The slower of link and disk, each way. */
  upBytesPerMs: number;
  downBytesPerMs: number;
  /** Nothing gets out, nothing gets in; both make a partition. */
  isDeaf: boolean;
  isMute: boolean;
  /** Cut off from the coordinator only. */
  isLost: boolean;
  /** Frozen: what was sent stays in buffers. */
  isStill: boolean;
  readonly flowsOut: Set<Flow>;
  readonly flowsIn: Set<Flow>;
}

export class Network {
  readonly latencyMs: number;
  readonly #timeline: Timeline;
  flowCount = 0;
  bytesMoved = 0;

  constructor(timeline: Timeline, options: { latencyMs: number }) {
    this.#timeline = timeline;
    this.latencyMs = options.latencyMs;
  }

  addNode(name: string, bytesPerMs: number): Node {
    return {
      name,
      upBytesPerMs: bytesPerMs,
      downBytesPerMs: bytesPerMs,
      isDeaf: false,
      isMute: false,
      isLost: false,
      isStill: false,
      flowsOut: new Set(),
      flowsIn: new Set(),
    };
  }

  /** Whether a packet gets there. */
  reaches(from: Node, to: Node): boolean {
    return !from.isMute && !to.isDeaf && !(from.isLost && to.name === "coordinator");
  }

  /** A stream needs both ways: its acknowledgements travel too. */
  connects(left: Node, right: Node): boolean {
    return this.reaches(left, right) && this.reaches(right, left);
  }

  /** `marks`: ascending byte counts at which `onMark` is called; the last one ends the flow. */
  start(
    ends: { from: Node; to: Node },
    marks: readonly number[],
    onMark: (index: number) => void,
  ): Flow {
    const flow = new Flow(this, ends, { marks, onMark });
    ends.from.flowsOut.add(flow);
    ends.to.flowsIn.add(flow);
    this.flowCount++;
    this.reconsider(ends.from, ends.to);
    return flow;
  }

  /** After anything about a node has changed. */
  reconsider(...nodes: readonly Node[]): void {
    for (const { flowsOut, flowsIn } of nodes) {
      for (const flow of flowsOut) flow.retime();
      for (const flow of flowsIn) flow.retime();
    }
  }

  rateOf({ from, to }: { from: Node; to: Node }): number {
    if (from.isStill || to.isStill || !this.connects(from, to)) return 0;
    return Math.min(from.upBytesPerMs / from.flowsOut.size, to.downBytesPerMs / to.flowsIn.size);
  }

  ended(flow: Flow): void {
    if (!flow.from.flowsOut.delete(flow)) return;
    flow.to.flowsIn.delete(flow);
    this.flowCount--;
    this.bytesMoved += flow.bytesDone;
    this.reconsider(flow.from, flow.to);
  }

  now(): number {
    return this.#timeline.nowMs;
  }

  after(ms: number, act: () => void): Timer {
    return this.#timeline.after(ms, act);
  }
}

export class Flow {
  readonly from: Node;
  readonly to: Node;
  bytesDone = 0;
  readonly #network: Network;
  readonly #marks: readonly number[];
  readonly #onMark: (index: number) => void;
  #next = 0;
  #bytesPerMs = 0;
  #sinceMs: number;
  #timer: Timer | null = null;
  #isOver = false;

  constructor(
    network: Network,
    { from, to }: { from: Node; to: Node },
    { marks, onMark }: { marks: readonly number[]; onMark: (index: number) => void },
  ) {
    this.from = from;
    this.to = to;
    this.#network = network;
    this.#marks = marks;
    this.#onMark = onMark;
    this.#sinceMs = network.now();
  }

  /** Ends it; no mark is called any more. Idempotent. */
  cancel(): void {
    if (this.#isOver) return;
    this.#settle();
    this.#finish();
  }

  /** As far as it is at this moment. */
  bytesNow(): number {
    if (!this.#isOver) this.#settle();
    return this.bytesDone;
  }

  /** Brings it to the present and asks for its share anew. */
  retime(): void {
    if (this.#isOver) return;
    const bytesPerMs = this.#network.rateOf(this);
    if (bytesPerMs === this.#bytesPerMs && this.#timer !== null) return;
    this.#settle();
    this.#bytesPerMs = bytesPerMs;
    this.#arm();
  }

  #settle(): void {
    const nowMs = this.#network.now();
    const upTo = this.#marks[this.#next] ?? this.bytesDone;
    this.bytesDone = Math.min(upTo, this.bytesDone + this.#bytesPerMs * (nowMs - this.#sinceMs));
    this.#sinceMs = nowMs;
  }

  #arm(): void {
    this.#timer?.cancel();
    this.#timer = null;
    const mark = this.#marks[this.#next];
    if (mark === undefined || this.#bytesPerMs === 0) return;
    const ms = (mark - this.bytesDone) / this.#bytesPerMs;
    this.#timer = this.#network.after(ms, () => this.#reached(mark));
  }

  #reached(mark: number): void {
    const index = this.#next++;
    this.bytesDone = mark;
    this.#sinceMs = this.#network.now();
    if (this.#next === this.#marks.length) this.#finish();
    else this.#arm();
    this.#onMark(index);
  }

  #finish(): void {
    this.#isOver = true;
    this.#timer?.cancel();
    this.#network.ended(this);
  }
}
