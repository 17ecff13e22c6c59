// SPDX-License-Identifier: Apache-2.0
// One thread that reads weights over HTTP/1.1: ranges go from the socket into shared memory, where the
// GPU takes them; answers of calls are gathered. It decides nothing.

import { parentPort, workerData } from "node:worker_threads";
import { asRelightError, assert, RelightError } from "../errors.ts";
import { ConnectionPool } from "./connection-pool.ts";
import type { BodySink } from "./http-connection.ts";
import type { ResponseHead } from "./http-head.ts";
import { remoteError, remoteErrorSchema } from "./remote-error.ts";
import {
  answerBytesMax,
  type ClientData,
  callPath,
  type FromClientThread,
  readPath,
  type ToClientThread,
} from "./weights-http-messages.ts";
import { toPlainError } from "./worker.ts";

assert(parentPort !== null, "the weights client runs as a worker thread");
const parent = parentPort;
const { limits, tls } = workerData as ClientData;
const errorBytesMax = 64 * 1_024;
const pool = new ConnectionPool({ limits, tls, partBytesMax: errorBytesMax });

parent.on("message", (message: ToClientThread) => {
  if (message.type === "cancel") pool.cancel(message.id);
  else if (message.type === "renew") pool.renew(message.tls);
  else void perform(message);
});

async function perform(
  message: Exclude<ToClientThread, { type: "cancel" | "renew" }>,
): Promise<void> {
  const { id, endpoint } = message;
  try {
    const body = message.type === "call" ? await call(message) : await read(message);
    tell({ type: "done", id, body });
  } catch (cause) {
    const error = toPlainError(asRelightError(cause));
    tell({ type: "failed", id, error: { ...error, details: { ...error.details, endpoint } } });
  } finally {
    pool.forget(id);
  }
}

async function call(message: Extract<ToClientThread, { type: "call" }>): Promise<string> {
  const { id, endpoint, op, args } = message;
  const sink = new AnswerSink();
  await pool.exchange({ id, endpoint, path: callPath(op, args), method: "POST" }, sink);
  return sink.text();
}

async function read(message: Extract<ToClientThread, { type: "read" }>): Promise<string> {
  const { id, endpoint, token, ranges, into } = message;
  const path = readPath(token, ranges);
  await pool.exchange({ id, endpoint, path }, new RangeSink(into));
  return "";
}

/** Gathers a body: an answer, or why there is none. Memory grows with what has arrived. */
class AnswerSink implements BodySink {
  readonly wantedBytes = 0;
  readonly #chunks: Buffer[] = [];
  #isError = false;

  head({ status, contentLength }: ResponseHead): void {
    this.#isError = status !== 200;
    const bytesMax = this.#isError ? errorBytesMax : answerBytesMax;
    if (contentLength > bytesMax) {
      refuse(`it has ${contentLength} bytes, want at most ${bytesMax}`);
    }
  }

  body(bytes: Buffer): number {
    this.#chunks.push(Buffer.from(bytes));
    return bytes.length;
  }

  end(): void {
    if (this.#isError) throw told(this.text());
  }

  text(): string {
    return Buffer.concat(this.#chunks).toString();
  }
}

/** Takes exactly as many bytes as were asked for, where they belong. */
class RangeSink implements BodySink {
  readonly wantedBytes = 0;
  readonly #into: Buffer;
  #error: AnswerSink | null = null;
  #landed = 0;

  constructor({ buffer, byteOffset, byteLength }: Uint8Array<SharedArrayBuffer>) {
    this.#into = Buffer.from(buffer, byteOffset, byteLength) as Buffer;
  }

  get direct() {
    if (this.#error !== null) return undefined;
    return {
      room: () => this.#into.subarray(this.#landed),
      landed: (bytes: number) => {
        this.#landed += bytes;
      },
    };
  }

  head(head: ResponseHead): void {
    if (head.status !== 200) {
      this.#error = new AnswerSink();
      this.#error.head(head);
    } else if (head.contentLength !== this.#into.length) {
      refuse(`it has ${head.contentLength} bytes, want ${this.#into.length}`);
    }
  }

  body(bytes: Buffer): number {
    if (this.#error !== null) return this.#error.body(bytes);
    bytes.copy(this.#into, this.#landed);
    this.#landed += bytes.length;
    return bytes.length;
  }

  end(): void {
    this.#error?.end();
  }
}

function told(text: string): RelightError {
  try {
    return remoteError(remoteErrorSchema.parse(JSON.parse(text)));
  } catch (cause) {
    return new RelightError("source_protocol", "Cannot read the answer: it is no error of ours", {
      cause,
    });
  }
}

function refuse(reason: string): never {
  throw new RelightError("source_protocol", `Cannot accept the source's response: ${reason}`);
}

function tell(message: FromClientThread): void {
  parent.postMessage(message);
}
