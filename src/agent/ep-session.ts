// SPDX-License-Identifier: Apache-2.0
// A rank's membership through the agent of its node. When the agent goes away the rank goes on: it asks
// the next one to take it up, with what the last one kept of it, and says again what that had not heard.

import { CommandQueue } from "../elastic/command-queue.ts";
import type { Command, JoinRequest, MembershipSession, Report } from "../elastic/session.ts";
import type { Status } from "../elastic/status.ts";
import type { Seat, View } from "../elastic/view.ts";
import { type AgentMessage, encode } from "../elastic/wire.ts";
import { type Code, codes, RelightError } from "../errors.ts";
import { DescriptorSocket } from "../gpu/descriptor-socket.ts";

const retryMs = 50;
/** Without an agent for this long the rank gives itself up: nobody could tell it anything. */
const orphanMsMax = 60_000;

/** @throws RelightError `source_unreachable` when no agent listens at `socketPath`. */
export function openAgentMembership(
  socketPath: string,
  request: JoinRequest,
  signal: AbortSignal,
): Promise<MembershipSession> {
  signal.throwIfAborted();
  return Promise.resolve(new AgentSession(socketPath, request));
}

class AgentSession implements MembershipSession {
  readonly #path: string;
  readonly #request: JoinRequest;
  readonly #queue = new CommandQueue();
  readonly #closing = new AbortController();
  #unheard: { readonly number: number; readonly report: Report }[] = [];
  #numbers = 0;
  #socket: DescriptorSocket;
  #kept: Status | null = null;
  #isOver = false;
  seat: Seat | null = null;
  view: View | null = null;

  constructor(path: string, request: JoinRequest) {
    this.#path = path;
    this.#request = request;
    this.#socket = this.#connect();
    void this.#follow();
  }

  get commands(): AsyncIterable<Command> {
    return this.#queue;
  }

  report(report: Report): void {
    if (this.#closing.signal.aborted)
      throw new RelightError("cancelled", "Cannot report: the session is closed");
    const number = ++this.#numbers;
    // Of progress only the latest matters.
    if (report.type === "progress")
      this.#unheard = this.#unheard.filter((one) => one.report.type !== "progress");
    this.#unheard.push({ number, report });
    this.#send({ type: "report", number, report });
  }

  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort();
    this.#queue.end();
    this.#socket.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #connect(): DescriptorSocket {
    const socket = DescriptorSocket.connect(this.#path);
    this.#socket = socket;
    this.#send({ type: "join", request: this.#request, resume: this.#kept });
    for (const { number, report } of this.#unheard) this.#send({ type: "report", number, report });
    return socket;
  }

  async #follow(): Promise<void> {
    let orphanedAtMs: number | null = null;
    while (!this.#closing.signal.aborted && !this.#isOver) {
      try {
        for (;;) {
          const { body } = await this.#socket.receive(this.#closing.signal);
          orphanedAtMs = null;
          this.#hear(body);
        }
      } catch {
        // The agent is gone, or this session is closed.
      }
      if (this.#closing.signal.aborted || this.#isOver) return;
      orphanedAtMs ??= performance.now();
      if (performance.now() - orphanedAtMs > orphanMsMax) return this.#end("hung_up");
      await new Promise((resolve) => setTimeout(resolve, retryMs));
      try {
        if (!this.#closing.signal.aborted) this.#connect();
      } catch {
        // Nobody listens yet.
      }
    }
  }

  #hear(body: Buffer): void {
    // From an agent of this user, by the mode of its socket: trusted as this process itself is.
    const message: AgentMessage = JSON.parse(body.toString("utf8"));
    switch (message.type) {
      case "view":
        this.view = message.view;
        return;
      case "kept":
        this.#kept = message.status;
        this.#unheard = this.#unheard.filter(({ number }) => number > message.number);
        return;
      case "refused":
        this.#isOver = true;
        this.#queue.fail(new RelightError(codeOf(message.code), message.message));
        return;
      case "command":
        this.#obey(message.command);
        return;
    }
  }

  #obey(command: Command): void {
    if (command.type === "seat") {
      this.seat = command.seat;
      this.view = command.view;
    }
    this.#queue.push(command);
    if (command.type !== "evicted" && command.type !== "release") return;
    // `quiesced` is still said; on a connection after this one there is nothing to resume.
    this.#isOver = true;
    this.#queue.end();
  }

  #end(ended: "hung_up"): void {
    this.#isOver = true;
    this.#queue.push({ type: "evicted", ended });
    this.#queue.end();
  }

  #send(message: unknown): void {
    this.#socket.send({ body: encode(message), descriptors: [] }).catch(() => {
      // Its end is noticed where it is read.
    });
  }
}

function codeOf(text: string): Code {
  return Object.hasOwn(codes, text) ? (text as Code) : "coordinator_refused";
}
