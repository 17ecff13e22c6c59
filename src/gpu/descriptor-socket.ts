// SPDX-License-Identifier: Apache-2.0
// Messages with open files attached, between processes of one machine and one user: a stream socket in
// the file system, SCM_RIGHTS, a length before each message. Node's own sockets drop what is attached,
// so the calls go through the FFI; waiting is the event loop's, never a thread's.
//
// A message is 8 bytes (u32 body length, u32 descriptor count, little-endian), one byte for every 250
// descriptors (each carries its share), then the body. python/relight/agent.py speaks the same.

import { chmodSync, lstatSync, rmSync } from "node:fs";
import { asRelightError, RelightError } from "../errors.ts";
import { type Libc, libc, type Readiness, rewatch, type Watch, watch } from "./libc.ts";

export const bodyBytesMax = 64 * 2 ** 20;
export const descriptorCountMax = 4_096;
const descriptorsPerCarrier = 250; // The kernel's limit is 253 a message.
const readBytes = 256 * 1_024; // What a socket holds by default, about.
const headerBytes = 8;
const toRead: Readiness = { readable: true, writable: false };
const toReadAndWrite: Readiness = { readable: true, writable: true };
const pathBytesMax = 107; // sun_path, less its end.

export interface DescriptorMessage {
  readonly body: Buffer;
  /** Open files; whoever receives them closes them. */
  readonly descriptors: readonly number[];
}

interface Waiter {
  readonly resolve: (message: DescriptorMessage) => void;
  readonly reject: (error: RelightError) => void;
}

/** One end of a connection. `receive` calls are answered in order. Closing twice is nothing. */
export class DescriptorSocket implements Disposable {
  readonly #libc: Libc;
  readonly #file: number;
  readonly #poll: Watch;
  readonly #messages: DescriptorMessage[] = [];
  readonly #waiters: Waiter[] = [];
  #chunks: Buffer[] = [];
  #bytes = 0;
  /** How many bytes must be there before it is worth looking at them again. */
  #wanted = headerBytes;
  #arrived: number[] = [];
  #sending: Promise<void> = Promise.resolve();
  #wake: (() => void) | null = null;
  #ended: RelightError | null = null;

  /** @param file a connected, non-blocking stream socket, owned from now on. */
  constructor(file: number) {
    this.#libc = libc();
    this.#file = file;
    this.#poll = watch(file, toRead, (ready) => this.#onReady(ready));
  }

  /** The process at the other end as the kernel knows it, or -1. */
  get peerProcess(): number {
    return this.#libc.peerProcess(this.#file);
  }

  /** @throws source_unreachable when nobody of this user listens there. */
  static connect(path: string): DescriptorSocket {
    const system = libc();
    const file = system.openSocket();
    const failure = system.connect(file, addressOf(path));
    const isOwn = failure === 0 && system.peerUser(file) === process.getuid?.();
    if (isOwn) return new DescriptorSocket(file);
    system.close(file);
    const why = failure === 0 ? "it belongs to another user" : system.nameOf(failure);
    throw new RelightError("source_unreachable", `Cannot connect to "${path}": ${why}`, {
      details: { path },
    });
  }

  /** Resolves when the kernel has taken the message; descriptors may be closed after that. */
  send(message: DescriptorMessage): Promise<void> {
    checkSize(message.body.byteLength, message.descriptors.length, "request_invalid");
    this.#sending = this.#sending.then(() => this.#sendNow(message));
    return this.#sending;
  }

  /** @throws cancelled, source_unreachable (the other end is gone), source_protocol */
  receive(signal: AbortSignal): Promise<DescriptorMessage> {
    const ready = this.#messages.shift();
    if (ready !== undefined) return Promise.resolve(ready);
    if (this.#ended !== null) return Promise.reject(this.#ended);
    const { promise, resolve, reject } = Promise.withResolvers<DescriptorMessage>();
    const waiter = { resolve, reject };
    this.#waiters.push(waiter);
    const cancel = () => {
      this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
      reject(new RelightError("cancelled", "Cannot wait for a message: the wait was cancelled"));
    };
    if (signal.aborted) cancel();
    else signal.addEventListener("abort", cancel, { once: true });
    return promise.finally(() => signal.removeEventListener("abort", cancel));
  }

  close(): void {
    this.#end(new RelightError("cancelled", "Cannot use the socket: it is closed"));
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #sendNow({ body, descriptors }: DescriptorMessage): Promise<void> {
    const header = Buffer.alloc(headerBytes);
    header.writeUInt32LE(body.byteLength, 0);
    header.writeUInt32LE(descriptors.length, 4);
    await this.#sendAll(header, []);
    for (let from = 0; from < descriptors.length; from += descriptorsPerCarrier) {
      await this.#sendAll(Buffer.alloc(1), descriptors.slice(from, from + descriptorsPerCarrier));
    }
    await this.#sendAll(body, []);
  }

  async #sendAll(bytes: Buffer, descriptors: readonly number[]): Promise<void> {
    for (let sent = 0; sent < bytes.byteLength; ) {
      if (this.#ended !== null) throw this.#ended;
      const result = this.#libc.send(this.#file, bytes.subarray(sent), descriptors);
      if ("bytes" in result) sent += result.bytes;
      else if (result.again) await this.#writable();
      else this.#end(gone(result.name));
    }
  }

  #writable(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    rewatch(this.#poll, toReadAndWrite, (ready) => this.#onReady(ready));
    return promise;
  }

  #onReady(ready: Readiness): void {
    if (ready.writable && this.#wake !== null) {
      const wake = this.#wake;
      this.#wake = null;
      rewatch(this.#poll, toRead, (next) => this.#onReady(next));
      wake();
    }
    if (ready.readable) this.#drain();
  }

  #drain(): void {
    while (this.#ended === null) {
      const result = this.#libc.receive(this.#file, readBytes);
      if ("again" in result) {
        if (!result.again) this.#end(gone(result.name));
        return;
      }
      this.#arrived.push(...result.descriptors);
      if (result.truncated) this.#end(protocol("descriptors were cut off"));
      else if (result.bytes.byteLength === 0) this.#end(gone("it closed the connection"));
      else this.#take(result.bytes);
    }
  }

  #take(arrived: Buffer): void {
    this.#chunks.push(arrived);
    this.#bytes += arrived.byteLength;
    try {
      while (this.#bytes >= this.#wanted) this.#look();
    } catch (error) {
      this.#end(asRelightError(error));
    }
  }

  /** Delivers the first message when all of it has arrived, else learns how long it is. */
  #look(): void {
    const bytes = Buffer.concat(this.#chunks);
    const bodyBytes = bytes.readUInt32LE(0);
    const count = bytes.readUInt32LE(4);
    checkSize(bodyBytes, count, "source_protocol");
    const bodyAt = headerBytes + Math.ceil(count / descriptorsPerCarrier);
    const end = bodyAt + bodyBytes;
    const isWhole = bytes.byteLength >= end;
    const rest = isWhole ? bytes.subarray(end) : bytes;
    this.#chunks = [rest];
    this.#bytes = rest.byteLength;
    this.#wanted = isWhole ? headerBytes : end;
    if (!isWhole) return;
    if (this.#arrived.length < count) throw protocol("descriptors are missing");
    const descriptors = this.#arrived.splice(0, count);
    this.#deliver({ body: bytes.subarray(bodyAt, end), descriptors });
  }

  #deliver(message: DescriptorMessage): void {
    const waiter = this.#waiters.shift();
    if (waiter === undefined) this.#messages.push(message);
    else waiter.resolve(message);
  }

  #end(error: RelightError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    this.#poll.close();
    this.#libc.close(this.#file);
    for (const descriptor of this.#arrived) this.#libc.close(descriptor);
    this.#wake?.();
    for (const waiter of this.#waiters.splice(0)) waiter.reject(error);
  }
}

/** Accepts connections of the same user only. */
export class DescriptorListener implements Disposable {
  readonly path: string;
  readonly #file: number;
  readonly #poll: Watch;
  #closed = false;

  /** @throws port_in_use when the path is taken by something that is not a dead socket. */
  constructor(path: string, onConnection: (socket: DescriptorSocket) => void) {
    const system = libc();
    this.path = path;
    this.#file = system.openSocket();
    removeDead(path);
    const failure = system.listen(this.#file, addressOf(path));
    if (failure !== 0) {
      system.close(this.#file);
      throw new RelightError(
        "port_in_use",
        `Cannot listen at "${path}": ${system.nameOf(failure)}`,
        { details: { path } },
      );
    }
    chmodSync(path, 0o600);
    this.#poll = watch(this.#file, toRead, () => {
      for (let file = system.accept(this.#file); file >= 0; file = system.accept(this.#file)) {
        // The mode of the path keeps others out; this holds also where the directory was opened up.
        if (system.peerUser(file) === process.getuid?.()) onConnection(new DescriptorSocket(file));
        else system.close(file);
      }
    });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#poll.close();
    libc().close(this.#file);
    rmSync(this.path, { force: true });
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** The socket that a killed process leaves behind; one that somebody answers at stays. */
function removeDead(path: string): void {
  // A connection to what is no socket is refused as well, and that is somebody's file.
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return;
  const system = libc();
  const file = system.openSocket();
  const failure = system.connect(file, addressOf(path));
  system.close(file);
  if (failure !== 0 && system.nameOf(failure) === "ECONNREFUSED") rmSync(path, { force: true });
}

/** sockaddr_un. */
function addressOf(path: string): Buffer {
  const bytes = Buffer.from(path);
  if (bytes.byteLength === 0 || bytes.byteLength > pathBytesMax || bytes.includes(0)) {
    throw new RelightError(
      "request_invalid",
      `Cannot use "${path}" as a socket: it has ${bytes.byteLength} bytes, at most ${pathBytesMax}`,
    );
  }
  return Buffer.concat([Buffer.from([1, 0]), bytes, Buffer.alloc(1)]);
}

function checkSize(
  bodyBytes: number,
  descriptorCount: number,
  code: "request_invalid" | "source_protocol",
): void {
  if (bodyBytes <= bodyBytesMax && descriptorCount <= descriptorCountMax) return;
  throw new RelightError(
    code,
    `Cannot pass a message of ${bodyBytes} bytes with ${descriptorCount} descriptors: ` +
      `at most ${bodyBytesMax} and ${descriptorCountMax}`,
  );
}

function gone(why: string): RelightError {
  return new RelightError("source_unreachable", `Cannot speak to the other process: ${why}`);
}

function protocol(why: string): RelightError {
  return new RelightError("source_protocol", `Cannot read the other process: ${why}`);
}
