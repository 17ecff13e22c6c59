// SPDX-License-Identifier: Apache-2.0
// Sends to a connected socket past Node's streams, and from a file without bringing its bytes into the
// process: libc's send and sendfile, which Node does not offer (docs/adr/0011-sendfile.md). One of the two
// places that import the FFI package; where it or the C library can not be loaded there is no sender.

/** On a non-blocking socket that nobody else writes to at this moment. */
export interface SocketSender {
  /** @returns how many bytes went; 0 when the socket takes none now, -1 when the connection is broken. */
  send(socket: number, part: Part): number;
  /** @returns as `send`; -2 when the file ends before `length`. */
  sendFile(socket: number, file: number, span: { offset: number; length: number }): number;
}

export interface Part {
  readonly bytes: Buffer;
  /** From the beginning of `bytes`. */
  readonly length: number;
  /** More follows at once: a packet that is not full may wait for it. */
  readonly hasMore: boolean;
}

const dontWait = 0x40;
const noSignal = 0x4000;
const more = 0x8000;
const eintr = 4;
const eagain = 11;

/** Null where there is none; never throws. */
export async function loadSocketSender(): Promise<SocketSender | null> {
  if (process.platform !== "linux") return null;
  try {
    const { default: koffi } = await import("koffi");
    const library = koffi.load("libc.so.6");
    const send = library.func(
      "int64_t send(int socket, const void *bytes, size_t length, int flags)",
    );
    const sendfile = library.func(
      "int64_t sendfile64(int out, int in, void *offset, size_t count)",
    );
    const offsetCell = new BigInt64Array(1);
    const outcome = (sent: number) => {
      if (sent >= 0) return sent;
      const errno = koffi.errno();
      return errno === eagain || errno === eintr ? 0 : -1;
    };
    return {
      send: (socket, { bytes, length, hasMore }) =>
        outcome(send(socket, bytes, length, dontWait | noSignal | (hasMore ? more : 0))),
      sendFile: (socket, file, { offset, length }) => {
        offsetCell[0] = BigInt(offset);
        const sent = sendfile(socket, file, offsetCell, length);
        return sent === 0 && length > 0 ? -2 : outcome(sent);
      },
    };
  } catch {
    // No FFI package for this machine, or another C library: bytes go through the process, as behind TLS.
    return null;
  }
}
