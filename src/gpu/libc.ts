// SPDX-License-Identifier: Apache-2.0
// The few calls of the C library that pass open files between processes. Structures are laid out for
// 64-bit Linux, which is all that the package supports. Every call is non-blocking.

import koffi from "koffi";

export type SendResult = { readonly bytes: number } | Failure;
export type ReceiveResult =
  | {
      readonly bytes: Buffer;
      readonly descriptors: readonly number[];
      readonly truncated: boolean;
    }
  | Failure;

interface Failure {
  /** Nothing is wrong; wait until the socket is ready. */
  readonly again: boolean;
  readonly name: string;
}

const afUnix = 1;
const sockStream = 1;
const sockNonblock = 0o4000;
const sockCloexec = 0o2000000;
const solSocket = 1;
const soPeercred = 17;
const scmRights = 1;
const msgNoSignal = 0x4000;
const msgCmsgCloexec = 0x40000000;
const msgCtrunc = 0x8;
const backlog = 64;
/** The number of pidfd_open on x86-64 and on arm64. */
const pidfdOpen = 434;
const sendBytesMax = 256 * 1_024;
const headerBytes = 16; // cmsghdr: u64 length, i32 level, i32 type.
const controlBytes = headerBytes + 4 * 256;

export class Libc {
  readonly #f;

  constructor() {
    const library = koffi.load("libc.so.6");
    const bind = (declaration: string) => library.func(declaration);
    this.#f = {
      socket: bind("int socket(int domain, int type, int protocol)"),
      bind: bind("int bind(int file, void *address, uint32_t bytes)"),
      listen: bind("int listen(int file, int backlog)"),
      accept: bind("int accept4(int file, void *address, void *bytes, int flags)"),
      connect: bind("int connect(int file, void *address, uint32_t bytes)"),
      getsockopt: bind("int getsockopt(int file, int level, int name, void *value, void *bytes)"),
      sendmsg: bind("int64_t sendmsg(int file, void *message, int flags)"),
      recvmsg: bind("int64_t recvmsg(int file, void *message, int flags)"),
      close: bind("int close(int file)"),
      syscall: bind("int64_t syscall(int64_t number, int64_t first, int64_t second)"),
    };
  }

  openSocket(): number {
    return this.#f.socket(afUnix, sockStream | sockNonblock | sockCloexec, 0);
  }

  /** @returns 0 or the errno. */
  listen(file: number, address: Buffer): number {
    if (this.#f.bind(file, address, address.byteLength) !== 0) return koffi.errno();
    return this.#f.listen(file, backlog) === 0 ? 0 : koffi.errno();
  }

  /** @returns 0 or the errno. */
  connect(file: number, address: Buffer): number {
    return this.#f.connect(file, address, address.byteLength) === 0 ? 0 : koffi.errno();
  }

  /** @returns the connection's file, or -1 when none waits. */
  accept(file: number): number {
    return this.#f.accept(file, null, null, sockNonblock | sockCloexec);
  }

  /** The user at the other end, or -1. */
  peerUser(file: number): number {
    return this.#peer(file)[1];
  }

  /** The process that connected, or -1. The kernel's word, not the peer's. */
  peerProcess(file: number): number {
    return this.#peer(file)[0];
  }

  #peer(file: number): readonly [process: number, user: number] {
    const credentials = new Int32Array(3); // pid, uid, gid
    const bytes = new Uint32Array([12]);
    const result = this.#f.getsockopt(file, solSocket, soPeercred, credentials, bytes);
    const [process = -1, user = -1] = result === 0 ? credentials : [];
    return [process, user];
  }

  /** A file that becomes readable when the process ends, or -1 when there is none of that number. */
  openProcess(pid: number): number {
    return Number(this.#f.syscall(pidfdOpen, pid, 0));
  }

  send(file: number, bytes: Buffer, descriptors: readonly number[]): SendResult {
    const control = descriptors.length === 0 ? Buffer.alloc(0) : rightsOf(descriptors);
    const message = messageOf(control.byteLength, Math.min(bytes.byteLength, sendBytesMax));
    message.control.set(control);
    bytes.copy(message.body);
    const sent = Number(this.#f.sendmsg(file, message.whole, msgNoSignal));
    return sent < 0 ? this.#failure() : { bytes: sent };
  }

  receive(file: number, bytesMax: number): ReceiveResult {
    const message = messageOf(controlBytes, bytesMax);
    const received = Number(this.#f.recvmsg(file, message.whole, msgCmsgCloexec));
    if (received < 0) return this.#failure();
    const used = Number(message.whole.readBigUInt64LE(40));
    return {
      bytes: message.body.subarray(0, received),
      descriptors: descriptorsOf(message.control.subarray(0, used)),
      truncated: (message.whole.readInt32LE(48) & msgCtrunc) !== 0,
    };
  }

  close(file: number): void {
    this.#f.close(file);
  }

  nameOf(errno: number): string {
    const known = Object.entries(koffi.os.errno).find(([, number]) => number === errno);
    return known?.[0] ?? `errno ${errno}`;
  }

  #failure(): Failure {
    const errno = koffi.errno();
    const { EAGAIN, EINTR } = koffi.os.errno;
    return { again: errno === EAGAIN || errno === EINTR, name: this.nameOf(errno) };
  }
}

export interface Readiness {
  readonly readable: boolean;
  readonly writable: boolean;
}

export type Watch = ReturnType<typeof koffi.node.poll>;

/** Calls on the event loop whenever the file is ready for what `want` names, until it is closed. */
export function watch(file: number, want: Readiness, onReady: (ready: Readiness) => void): Watch {
  return koffi.node.poll(file, { ...want }, onPoll(onReady));
}

export function rewatch(
  watched: Watch,
  want: Readiness,
  onReady: (ready: Readiness) => void,
): void {
  watched.start({ ...want }, onPoll(onReady));
}

/**
 * The package calls with a status and the events, although its types name the events alone. With a status
 * the event loop has stopped watching: the next read or write then says what is wrong, such as a peer
 * that was killed before it had read what we sent.
 */
function onPoll(onReady: (ready: Readiness) => void): (...given: unknown[]) => void {
  return (...given) => {
    const hasFailed = given.length > 1 && given[0] !== 0;
    onReady(hasFailed ? { readable: true, writable: true } : (given.at(-1) as Readiness));
  };
}

let opened: Libc | null = null;

/** Bound at first use; the functions are the same for everybody, so one object serves all. */
export function libc(): Libc {
  opened ??= new Libc();
  return opened;
}

/** msghdr, its one iovec, the control data and the body in one buffer: holding it holds them all. */
function messageOf(controlBytes: number, bodyBytes: number) {
  const whole = Buffer.allocUnsafeSlow(72 + controlBytes + bodyBytes).fill(0, 0, 72 + controlBytes);
  const base = koffi.address(whole);
  whole.writeBigUInt64LE(base + 56n, 16);
  whole.writeBigUInt64LE(1n, 24);
  whole.writeBigUInt64LE(base + 72n, 32);
  whole.writeBigUInt64LE(BigInt(controlBytes), 40);
  whole.writeBigUInt64LE(base + 72n + BigInt(controlBytes), 56);
  whole.writeBigUInt64LE(BigInt(bodyBytes), 64);
  const control = whole.subarray(72, 72 + controlBytes);
  return { whole, control, body: whole.subarray(72 + controlBytes) };
}

function rightsOf(descriptors: readonly number[]): Buffer {
  const length = headerBytes + 4 * descriptors.length;
  const control = Buffer.alloc(Math.ceil(length / 8) * 8);
  control.writeBigUInt64LE(BigInt(length), 0);
  control.writeInt32LE(solSocket, 8);
  control.writeInt32LE(scmRights, 12);
  descriptors.forEach((descriptor, index) => {
    control.writeInt32LE(descriptor, headerBytes + 4 * index);
  });
  return control;
}

function descriptorsOf(control: Buffer): number[] {
  const found: number[] = [];
  for (let from = 0; from + headerBytes <= control.byteLength; ) {
    const length = Number(control.readBigUInt64LE(from));
    if (length < headerBytes || from + length > control.byteLength) break;
    const isRights =
      control.readInt32LE(from + 8) === solSocket && control.readInt32LE(from + 12) === scmRights;
    for (let place = from + headerBytes; isRights && place + 4 <= from + length; place += 4) {
      found.push(control.readInt32LE(place));
    }
    from += Math.ceil(length / 8) * 8;
  }
  return found;
}
