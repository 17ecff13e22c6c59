// SPDX-License-Identifier: Apache-2.0
// An agent's session with the coordinator: one stream, heartbeats, and reconnecting with back-off. It
// publishes nothing itself: it says `lost` and `restored`, and the owner publishes again when the
// coordinator did not keep the session.

import { setTimeout as sleep } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { Client, ClientDuplexStream } from "@grpc/grpc-js";
import { asRelightError, RelightError } from "../errors.ts";
import {
  Coordinator,
  type SessionEvent,
  type SessionRequest,
  SessionRequestSchema,
  type Welcome,
} from "../protocol/gen/relight_pb.ts";
import { grpcMethod } from "../protocol/grpc.ts";
import { policyBytesMax } from "../trust/policy.ts";
import { cancelled, fromGrpc } from "./coordinator-errors.ts";

export interface SessionHello {
  readonly nodeId: string;
  readonly agentEndpoint: string;
}

export type SessionChange =
  | { readonly type: "lost"; readonly error: RelightError }
  /** `resumed`: everything published is still offered. Otherwise publish again, under the new id. */
  | { readonly type: "restored"; readonly resumed: boolean; readonly sessionId: string }
  /** The fleet's policy as the coordinator has it: a claim, whoever carries it. */
  | { readonly type: "policy"; readonly envelope: Buffer };

export interface Session {
  /** As the coordinator knows it now; changes with a `restored` that was not `resumed`. */
  readonly id: string;
  readonly isConnected: boolean;
  /** Told with the next heartbeat. */
  setReaders(readers: number): void;
  /** Listens until the returned function is called; hears at once of the policy that came before. */
  onChange(listener: (change: SessionChange) => void): () => void;
  /** Says goodbye and waits for the coordinator's answer; what was published is withheld. Idempotent. */
  close(signal: AbortSignal): Promise<void>;
}

interface SessionOptions {
  readonly timeoutMs: number;
  readonly random: () => number;
  /** For the opening. */
  readonly signal: AbortSignal;
  /** The client is going away. */
  readonly closing: AbortSignal;
}

type Stream = ClientDuplexStream<SessionRequest, SessionEvent>;

const backoffMsMin = 100;
const backoffMsMax = 1_000;
/** What is longer is no policy; keeping it would be the coordinator's choice of our memory. */
const policyEnvelopeBytesMax = 2 * policyBytesMax;
const heartbeatMsMin = 50;
const heartbeatMsMax = 60_000;

export async function openSession(
  client: Client,
  hello: SessionHello,
  options: SessionOptions,
): Promise<Session> {
  if (options.signal.aborted) throw abandoned(options.signal);
  const session = new StreamSession(client, hello, options);
  await session.start(options.signal);
  return session;
}

class StreamSession implements Session {
  readonly #client: Client;
  readonly #hello: SessionHello;
  readonly #options: SessionOptions;
  readonly #listeners = new Set<(change: SessionChange) => void>();
  readonly #ended = new AbortController();
  #id: string | undefined;
  #stream: Stream | undefined;
  #isConnected = false;
  #readers = 0;
  #policy: Buffer | null = null;
  #closed: Promise<void> | undefined;

  constructor(client: Client, hello: SessionHello, options: SessionOptions) {
    this.#client = client;
    this.#hello = hello;
    this.#options = options;
    options.closing.addEventListener("abort", () => this.#end(), { once: true });
  }

  get id(): string {
    return this.#id ?? "";
  }

  get isConnected(): boolean {
    return this.#isConnected;
  }

  setReaders(readers: number): void {
    this.#readers = Math.max(0, Math.min(0xffff_ffff, Math.trunc(readers)));
  }

  onChange(listener: (change: SessionChange) => void): () => void {
    this.#listeners.add(listener);
    if (this.#policy !== null) listener({ type: "policy", envelope: this.#policy });
    return () => this.#listeners.delete(listener);
  }

  /** The first connection: a failure is the caller's to handle. */
  async start(signal: AbortSignal): Promise<void> {
    const { stream } = await this.#connect(signal);
    this.#follow(stream);
  }

  close(signal: AbortSignal): Promise<void> {
    this.#closed ??= this.#close(signal);
    return this.#closed;
  }

  async #close(signal: AbortSignal): Promise<void> {
    const stream = this.#isConnected ? this.#stream : undefined;
    this.#isConnected = false;
    this.#ended.abort(cancelled("The session was closed"));
    if (stream === undefined) return;
    try {
      await sayGoodbye(
        stream,
        AbortSignal.any([signal, AbortSignal.timeout(this.#options.timeoutMs)]),
      );
    } finally {
      stream.cancel();
    }
  }

  #end(): void {
    this.#isConnected = false;
    this.#ended.abort(cancelled("The client was closed"));
    this.#stream?.cancel();
  }

  async #connect(signal: AbortSignal): Promise<{ stream: Stream; welcome: Welcome }> {
    const { path, requestSerialize, responseDeserialize } = grpcMethod(Coordinator.method.session);
    const stream: Stream = this.#client.makeBidiStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
    );
    stream.on("data", ({ kind }: SessionEvent) => {
      if (kind.case === "policy") this.#hearPolicy(Buffer.from(kind.value));
    });
    const limit = AbortSignal.any([signal, AbortSignal.timeout(this.#options.timeoutMs)]);
    const welcomed = firstWelcome(stream, limit);
    const previous = this.#id === undefined ? {} : { sessionId: this.#id };
    stream.write(request({ case: "hello", value: { ...this.#hello, ...previous } }));
    const welcome = await welcomed;
    if (this.#ended.signal.aborted) {
      stream.cancel();
      throw cancelled("The session was closed");
    }
    this.#stream = stream;
    this.#id = welcome.sessionId;
    this.#isConnected = true;
    this.#beat(stream, welcome.heartbeatMs);
    return { stream, welcome };
  }

  #hearPolicy(envelope: Buffer): void {
    if (envelope.length > policyEnvelopeBytesMax) return;
    this.#policy = envelope;
    this.#tell({ type: "policy", envelope });
  }

  #beat(stream: Stream, heartbeatMs: number): void {
    const everyMs = Math.min(heartbeatMsMax, Math.max(heartbeatMsMin, heartbeatMs));
    const beat = (): void => {
      if (stream.writable)
        stream.write(request({ case: "heartbeat", value: { readers: this.#readers } }));
    };
    const timer = setInterval(beat, everyMs);
    timer.unref();
    stream.on("close", () => clearInterval(timer));
    stream.on("error", () => clearInterval(timer));
    stream.on("end", () => clearInterval(timer));
  }

  /** Waits for the stream's end and, unless it was asked for, connects again until it succeeds. */
  #follow(stream: Stream): void {
    const lost = (error: RelightError): void => {
      if (!this.#isConnected || this.#stream !== stream) return;
      this.#isConnected = false;
      stream.cancel();
      this.#tell({ type: "lost", error });
      void this.#reconnect();
    };
    stream.on("error", (error) => lost(fromGrpc(error, "the session")));
    stream.on("end", () =>
      lost(
        new RelightError("coordinator_unreachable", "Cannot keep the session: the stream ended"),
      ),
    );
  }

  async #reconnect(): Promise<void> {
    const { signal } = this.#ended;
    for (let waitMs = backoffMsMin; !signal.aborted; waitMs = Math.min(backoffMsMax, 2 * waitMs)) {
      try {
        // Jitter, so that a fleet does not come back in step after the coordinator's restart.
        await sleep(waitMs * (0.5 + this.#options.random() / 2), undefined, { signal, ref: false });
        const { stream, welcome } = await this.#connect(signal);
        this.#follow(stream);
        this.#tell({ type: "restored", resumed: welcome.resumed, sessionId: welcome.sessionId });
        return;
      } catch {
        // Still away, or closed meanwhile: `lost` was told already, and the loop ends when closed.
      }
    }
  }

  #tell(change: SessionChange): void {
    for (const listener of this.#listeners) listener(change);
  }
}

function request(kind: MessageInitShape<typeof SessionRequestSchema>["kind"]): SessionRequest {
  return create(SessionRequestSchema, kind === undefined ? {} : { kind });
}

function firstWelcome(stream: Stream, signal: AbortSignal): Promise<Welcome> {
  const { promise, resolve, reject } = Promise.withResolvers<Welcome>();
  const abort = (): void => {
    reject(abandoned(signal));
    stream.cancel();
  };
  const refuse = (error: unknown): void => reject(fromGrpc(error, "the session"));
  signal.addEventListener("abort", abort, { once: true });
  stream.on("error", refuse);
  stream.on("data", ({ kind }: SessionEvent) => {
    if (kind.case === "welcome") resolve(kind.value);
  });
  stream.on("end", () =>
    reject(new RelightError("coordinator_unreachable", "Cannot open a session: the stream ended")),
  );
  if (signal.aborted) abort();
  return promise.finally(() => signal.removeEventListener("abort", abort));
}

function abandoned(signal: AbortSignal): RelightError {
  const { reason } = signal;
  if (reason instanceof DOMException && reason.name === "TimeoutError") {
    return new RelightError("coordinator_unreachable", "Cannot open a session: no answer in time");
  }
  return reason instanceof RelightError
    ? reason
    : cancelled("Cannot open a session: cancelled", reason);
}

/** Resolves when the coordinator has ended the stream, which it does after withholding. */
function sayGoodbye(stream: Stream, signal: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const abort = (): void =>
    reject(
      new RelightError("coordinator_unreachable", "Cannot confirm the goodbye: no answer in time"),
    );
  signal.addEventListener("abort", abort, { once: true });
  stream.on("end", resolve);
  stream.on("error", (error) => reject(asRelightError(fromGrpc(error, "the goodbye"))));
  stream.write(request({ case: "goodbye", value: {} }));
  stream.end();
  return promise.finally(() => signal.removeEventListener("abort", abort));
}
