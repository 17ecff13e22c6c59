// SPDX-License-Identifier: Apache-2.0
// An agent's side of its ranks: a socket on which they ask to join, the rank protocol for each (member.ts),
// the way to the coordinator, and the word that a rank's process has ended. A rank's death is noticed by
// its pidfd, its silence by its socket; what the coordinator has not taken in yet is said again.

import {
  hearReport,
  hearView,
  type Member,
  newMember,
  othersEnded,
  processEnded,
  processLost,
  resumedMember,
} from "../elastic/member.ts";
import type { JoinRequest } from "../elastic/session.ts";
import type { ProcessName, Seat, View } from "../elastic/view.ts";
import { type AgentMessage, encode, type RankMessage, readRankMessage } from "../elastic/wire.ts";
import { asRelightError, type RelightError } from "../errors.ts";
import { DescriptorListener, type DescriptorSocket } from "../gpu/descriptor-socket.ts";
import { ProcessWatch } from "../gpu/process-end.ts";
import { bootId, startTicksOf } from "../platform/process.ts";
import type { EpClient, MemberLine } from "./ep-client.ts";

export interface EpHostOptions {
  readonly nodeId: string;
  /** At most 107 bytes; only this user gets in. */
  readonly socketPath: string;
  readonly client: EpClient;
  readonly onFailure?: (error: RelightError) => void;
}

/** Well within a lease, and often enough to say how fast the group runs. */
const beatMs = 100;
const retryMs = 100;
/** A rank whose process lives and whose socket is gone may come back, as after a restart of the agent. */
const comeBackMs = 2_000;

export class EpHost implements Disposable {
  readonly #options: EpHostOptions;
  readonly #listener: DescriptorListener;
  readonly #ranks = new Set<HostedRank>();

  /** @throws RelightError `port_in_use`, `request_invalid`. */
  constructor(options: EpHostOptions) {
    this.#options = options;
    this.#listener = new DescriptorListener(options.socketPath, (socket) => {
      void this.#serve(socket);
    });
  }

  [Symbol.dispose](): void {
    this.#listener.close();
    for (const rank of [...this.#ranks]) rank.stop();
  }

  async #serve(socket: DescriptorSocket): Promise<void> {
    const { onFailure = () => {} } = this.#options;
    let rank: HostedRank | null = null;
    try {
      for (;;) {
        const { body } = await socket.receive(neverAborted);
        const message = readRankMessage(body);
        if (message.type === "join") rank = this.#welcome(message, socket, rank);
        else rank?.hearReport(message.number, message.report);
      }
    } catch (thrown) {
      const error = asRelightError(thrown);
      if (error.code !== "source_unreachable" && error.code !== "cancelled") {
        onFailure(error);
        const { code, message } = error;
        await socket
          .send({ body: encode({ type: "refused", code, message }), descriptors: [] })
          .catch(() => {}); // It is gone as well.
      }
      socket.close();
      rank?.hangUp(socket);
    }
  }

  #welcome(
    { request, resume }: Extract<RankMessage, { type: "join" }>,
    socket: DescriptorSocket,
    known: HostedRank | null,
  ): HostedRank {
    if (known !== null) return known;
    const process = this.#nameOf(socket.peerProcess);
    // Who it is says the kernel, not the rank.
    const occupant = { ...request.occupant, process, owner: null };
    const same = [...this.#ranks].find((rank) => rank.isOf(occupant.memberId, process));
    if (same !== undefined) {
      same.takeUp(socket);
      return same;
    }
    const { memberId } = occupant;
    const member = resume?.memberId === memberId ? resumedMember(resume) : freshMember(memberId);
    const rank = new HostedRank({
      ...{ socket, member, request: { ...request, occupant }, client: this.#options.client },
      onOver: () => this.#ranks.delete(rank),
    });
    this.#ranks.add(rank);
    return rank;
  }

  #nameOf(pid: number): ProcessName {
    const { nodeId } = this.#options;
    return { nodeId, bootId: bootId(), pid, startTicks: startTicksOf(pid) ?? 0 };
  }
}

/** Its words count as later than those of an agent before this one. */
function freshMember(memberId: string): Member {
  const member = newMember(memberId);
  return { ...member, status: { ...member.status, sequence: Date.now() } };
}

const neverAborted = new AbortController().signal;

interface RankParts {
  readonly socket: DescriptorSocket;
  readonly member: Member;
  readonly request: JoinRequest;
  readonly client: EpClient;
  readonly onOver: () => void;
}

class HostedRank {
  readonly #parts: RankParts;
  readonly #watch: ProcessWatch;
  readonly #beat: NodeJS.Timeout;
  #member: Member;
  #socket: DescriptorSocket | null;
  #line: MemberLine | null = null;
  #told = -1;
  #heardNumber = 0;
  #lost: NodeJS.Timeout | undefined;
  #retry: NodeJS.Timeout | undefined;
  #isStopped = false;

  constructor(parts: RankParts) {
    this.#parts = parts;
    this.#member = parts.member;
    this.#socket = parts.socket;
    this.#connect();
    this.#beat = setInterval(() => this.#line?.tell(this.#member.status), beatMs);
    const { pid } = parts.request.occupant.process;
    this.#watch = new ProcessWatch(pid, () => {
      this.#member = processEnded(this.#member);
      this.#tell();
      // Never seated: there is nothing to wait for.
      if (this.#member.status.seat === null && this.#member.view === null) this.stop();
    });
  }

  isOf(memberId: string, { pid, startTicks }: ProcessName): boolean {
    const { occupant } = this.#parts.request;
    const { process } = occupant;
    return (
      occupant.memberId === memberId && process.pid === pid && process.startTicks === startTicks
    );
  }

  hearReport(number: number, report: Extract<RankMessage, { type: "report" }>["report"]): void {
    // Said again after a reconnection.
    if (number <= this.#heardNumber) return;
    this.#heardNumber = number;
    if (report.type === "load") this.#line?.load(report.experts);
    const before = this.#member;
    this.#member = hearReport(this.#member, report);
    this.#keep();
    // Progress is told with the next beat, unless the group may be waiting for it.
    const isUrgent = report.type !== "progress" || before.view?.committed !== null;
    if (isUrgent) this.#tell();
  }

  /** The same process on a new connection. */
  takeUp(socket: DescriptorSocket): void {
    clearTimeout(this.#lost);
    this.#socket?.close();
    this.#socket = socket;
  }

  hangUp(socket: DescriptorSocket): void {
    if (this.#socket !== socket) return;
    this.#socket = null;
    if (this.#member.status.isQuiesced || this.#isStopped) return;
    this.#lost = setTimeout(() => {
      this.#member = processLost(this.#member);
      this.#tell();
    }, comeBackMs);
  }

  stop(): void {
    if (this.#isStopped) return;
    this.#isStopped = true;
    clearInterval(this.#beat);
    clearTimeout(this.#lost);
    clearTimeout(this.#retry);
    this.#watch[Symbol.dispose]();
    this.#line?.close();
    this.#socket?.close();
    this.#parts.onOver();
  }

  #connect(): void {
    const { client, request } = this.#parts;
    this.#line = client.member(request, this.#member.status, {
      view: (view) => this.#hearView(view),
      end: (error) => this.#onLineEnd(error),
    });
  }

  #onLineEnd(error: RelightError): void {
    this.#line = null;
    if (this.#isStopped) return;
    // Who has a seat keeps it until the coordinator says that it has none; others are told why not.
    const isEvicted = error.code === "ep_evicted";
    const isRefused = error.facts.retry === "never" && error.code !== "cancelled";
    if (isEvicted || (isRefused && this.#member.status.seat === null)) {
      const { code, message } = error;
      this.#member = { ...this.#member, isOver: true };
      const last: AgentMessage = isEvicted
        ? { type: "command", command: stale }
        : { type: "refused", code, message };
      // Said before the socket closes, or the rank would only ask again.
      void this.#send(last).finally(() => this.stop());
      return;
    }
    this.#retry = setTimeout(() => this.#connect(), retryMs);
  }

  #hearView(view: View): void {
    if (this.#isStopped) return;
    const before = this.#member;
    const [heard, commands] = hearView(this.#member, view);
    this.#member = othersEnded(heard, this.#goneIn(view));
    if (heard.view !== before.view && heard.status.seat !== null)
      void this.#send({ type: "view", view });
    for (const command of commands) void this.#send({ type: "command", command });
    if (this.#member !== before) {
      this.#keep();
      this.#tell();
    }
    this.#stopIfOver(view);
  }

  /** Once the coordinator knows how it ended, nobody has to say so again. */
  #stopIfOver(view: View): void {
    const { seat, memberId } = this.#member.status;
    const own = view.slots.find(({ occupant }) => occupant?.memberId === memberId);
    const isKnown = own === undefined || own.isEndKnown;
    const isEnded = this.#member.hasEnded || this.#member.status.isQuiesced;
    if (isEnded && isKnown && (seat !== null || this.#member.hasEnded)) this.stop();
  }

  /** Processes of this machine that are gone: also of agents that are gone with them. */
  #goneIn(view: View): Seat[] {
    const { nodeId, bootId: boot } = this.#parts.request.occupant.process;
    return view.slots.flatMap(({ slot, incarnation, occupant, isEndKnown }) => {
      if (occupant === null || isEndKnown) return [];
      const { process } = occupant;
      if (process.nodeId !== nodeId || process.bootId !== boot) return [];
      return startTicksOf(process.pid) === process.startTicks ? [] : [{ slot, incarnation }];
    });
  }

  #tell(): void {
    if (this.#member.status.sequence === this.#told) return;
    this.#told = this.#member.status.sequence;
    this.#line?.tell(this.#member.status);
  }

  #keep(): void {
    void this.#send({ type: "kept", number: this.#heardNumber, status: this.#member.status });
  }

  async #send(message: AgentMessage): Promise<void> {
    await this.#socket?.send({ body: encode(message), descriptors: [] }).catch(() => {
      // Its end is noticed where it is read.
    });
  }
}

const stale = { type: "evicted", ended: "stale" } as const;
