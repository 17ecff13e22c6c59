// SPDX-License-Identifier: Apache-2.0
// Calls between processes of one machine whose arguments and answers may carry handles to GPU memory.
// It moves handles, never weights: whoever holds a handle reads the memory itself. What a call means is
// the session's (weights/host.ts has the calls); engines and agents speak to the same socket.

import { closeSync } from "node:fs";
import { z } from "zod";
import { asRelightError, RelightError } from "../errors.ts";
import {
  DescriptorListener,
  type DescriptorMessage,
  DescriptorSocket,
} from "../gpu/descriptor-socket.ts";
import type { MemoryHandle } from "../gpu/driver.ts";
import { remoteError, remoteErrorSchema } from "./remote-error.ts";

export interface HandleCall {
  readonly op: string;
  readonly args: unknown;
  /** Descriptors among them are open as long as the connection that they came by. */
  readonly handles: readonly MemoryHandle[];
}

export interface HandleReply {
  readonly value: unknown;
  readonly handles: readonly MemoryHandle[];
}

/** One caller, from connect to disconnect. Its calls come one at a time, in order. */
export interface HandleSession {
  /** A RelightError is told to the caller; `signal` fires when the caller is gone. */
  call(call: HandleCall, signal: AbortSignal): Promise<HandleReply>;
  /** The caller has gone, or was killed. */
  end(): void;
}

const bytes = z.number().int().min(1);
const handleSchema = z.union([
  z.strictObject({
    kind: z.literal("ipc"),
    handle: z.string().regex(/^[0-9a-f]{128}$/),
    bytes,
  }),
  z.strictObject({ kind: z.literal("descriptor"), pieces: z.array(bytes).min(1).max(4_096) }),
]);
const handlesSchema = z.array(handleSchema).max(100_000);
const callSchema = z.strictObject({
  op: z.string().max(64),
  args: z.unknown(),
  handles: handlesSchema,
});
const replySchema = z.union([
  z.strictObject({ value: z.unknown(), handles: handlesSchema }),
  z.strictObject({
    error: remoteErrorSchema,
  }),
]);

type WireHandle = z.infer<typeof handleSchema>;

/** Listens until disposed; `open` makes the session of each connection. */
export class HandleServer implements Disposable {
  readonly path: string;
  readonly #listener: DescriptorListener;
  readonly #connections = new Set<DescriptorSocket>();

  /** @throws port_in_use, request_invalid (the path is too long) */
  constructor(path: string, open: () => HandleSession) {
    this.path = path;
    this.#listener = new DescriptorListener(path, (socket) => {
      this.#connections.add(socket);
      void serve(socket, open()).finally(() => this.#connections.delete(socket));
    });
  }

  [Symbol.dispose](): void {
    this.#listener.close();
    for (const socket of this.#connections) socket.close();
  }
}

async function serve(socket: DescriptorSocket, session: HandleSession): Promise<void> {
  const gone = new AbortController();
  const descriptors: number[] = [];
  try {
    let next = socket.receive(gone.signal);
    for (;;) {
      const message = await next;
      descriptors.push(...message.descriptors);
      // Asked for at once: it is how a caller's death is noticed while its call is under way.
      next = socket.receive(gone.signal);
      next.catch(() => gone.abort());
      await socket.send(await answer(session, message, gone.signal));
    }
  } catch {
    // The connection is over, by its end or by bytes that are no call; both end the session alike.
  } finally {
    gone.abort();
    session.end();
    socket.close();
    for (const descriptor of descriptors) closeSync(descriptor);
  }
}

async function answer(
  session: HandleSession,
  message: DescriptorMessage,
  signal: AbortSignal,
): Promise<DescriptorMessage> {
  try {
    const parsed = callSchema.safeParse(JSON.parse(message.body.toString()));
    if (!parsed.success) {
      throw new RelightError("request_invalid", `Cannot read the call: ${parsed.error.message}`);
    }
    const { op, args } = parsed.data;
    const handles = fromWire(parsed.data.handles, message.descriptors);
    const { value, handles: given } = await session.call({ op, args, handles }, signal);
    return toMessage({ value }, given);
  } catch (cause) {
    const { code, message: text, details } = asRelightError(cause);
    return toMessage({ error: { code, message: text, details } }, null);
  }
}

/** The caller's end. One call at a time; disposing ends the session at the other end. */
export class HandleClient implements Disposable {
  readonly #socket: DescriptorSocket;
  readonly #descriptors: number[] = [];

  private constructor(socket: DescriptorSocket) {
    this.#socket = socket;
  }

  /** @throws source_unreachable */
  static connect(path: string): HandleClient {
    return new HandleClient(DescriptorSocket.connect(path));
  }

  /** @throws what the session threw; source_unreachable, source_protocol, cancelled */
  async call(call: HandleCall, signal: AbortSignal): Promise<HandleReply> {
    const { op, args } = call;
    await this.#socket.send(toMessage({ op, args }, call.handles));
    const message = await this.#socket.receive(signal);
    this.#descriptors.push(...message.descriptors);
    const reply = parseReply(message.body);
    if ("error" in reply) throw remoteError(reply.error);
    return { value: reply.value, handles: fromWire(reply.handles, message.descriptors) };
  }

  [Symbol.dispose](): void {
    this.#socket.close();
    for (const descriptor of this.#descriptors.splice(0)) closeSync(descriptor);
  }
}

function parseReply(body: Buffer): z.infer<typeof replySchema> {
  try {
    return replySchema.parse(JSON.parse(body.toString()));
  } catch (cause) {
    throw new RelightError("source_protocol", "Cannot read the answer: it is not one", { cause });
  }
}

/** @param handles `null` for a message that has none, an error. */
function toMessage(fields: object, handles: readonly MemoryHandle[] | null): DescriptorMessage {
  if (handles === null) return { body: Buffer.from(JSON.stringify(fields)), descriptors: [] };
  const descriptors: number[] = [];
  const wire = handles.map((handle): WireHandle => {
    if (handle.kind === "ipc") {
      const hex = Buffer.from(handle.handle).toString("hex");
      return { kind: "ipc", handle: hex, bytes: handle.bytes };
    }
    descriptors.push(...handle.pieces.map((piece) => piece.descriptor));
    return { kind: "descriptor", pieces: handle.pieces.map((piece) => piece.bytes) };
  });
  return { body: Buffer.from(JSON.stringify({ ...fields, handles: wire })), descriptors };
}

function fromWire(wire: readonly WireHandle[], descriptors: readonly number[]): MemoryHandle[] {
  let next = 0;
  const handles = wire.map((handle): MemoryHandle => {
    if (handle.kind === "ipc") {
      return { kind: "ipc", handle: Buffer.from(handle.handle, "hex"), bytes: handle.bytes };
    }
    const pieces = handle.pieces.map((size, index) => {
      const descriptor = descriptors[next + index];
      if (descriptor === undefined) {
        throw new RelightError(
          "source_protocol",
          "Cannot use the handles: descriptors are missing",
        );
      }
      return { descriptor, bytes: size };
    });
    next += pieces.length;
    return { kind: "descriptor", pieces };
  });
  if (next !== descriptors.length) {
    throw new RelightError("source_protocol", "Cannot use the handles: descriptors are left over");
  }
  return handles;
}
