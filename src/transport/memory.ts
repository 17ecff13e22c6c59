// SPDX-License-Identifier: Apache-2.0
// The transport inside one process, for `relight dev` and for tests: the same offers, refusals, checks
// and writes as over HTTP, with a function call where the wire would be. Reads and writes on the
// caller's thread.

import fs from "node:fs";
import type { Hex32 } from "../core/digest.ts";
import { PieceSet } from "../core/pieces.ts";
import { assert, RelightError } from "../errors.ts";
import { packFiles, packOffer } from "./offer-table.ts";
import { openOffered, readFully } from "./offered-file.ts";
import { ServedArtifact } from "./served-artifact.ts";
import { PieceIntake } from "./staged-piece.ts";
import {
  type Offer,
  type OfferedFile,
  type PieceFetcher,
  type PieceOrder,
  type PieceReceipt,
  type PieceServer,
  type ServerEvents,
  type ServerStats,
  type SourceAddress,
  serverLimits,
} from "./transport.ts";

/** The servers that one process has, by endpoint: what a network is elsewhere. */
export class MemoryNetwork {
  readonly #servers = new Map<string, MemoryServer>();
  #next = 1;

  serve(options: { events: ServerEvents; readersMax?: number }): PieceServer {
    const endpoint = `memory://${this.#next++}`;
    const server = new MemoryServer(endpoint, {
      events: options.events,
      readersMax: options.readersMax ?? serverLimits.readersMax,
      onStop: () => this.#servers.delete(endpoint),
    });
    this.#servers.set(endpoint, server);
    return server;
  }

  fetcher(): PieceFetcher {
    return new MemoryFetcher((endpoint) => {
      const server = this.#servers.get(endpoint);
      if (server !== undefined) return server;
      throw new RelightError(
        "source_unreachable",
        `Cannot reach source ${endpoint}: it is not there`,
      );
    });
  }
}

class MemoryServer implements PieceServer {
  readonly endpoint: string;
  readonly #options: { events: ServerEvents; readersMax: number; onStop: () => void };
  readonly #artifacts = new Map<Hex32, ServedArtifact>();
  #readers = 0;
  #bytesSent = 0;
  #refused = 0;

  constructor(
    endpoint: string,
    options: { events: ServerEvents; readersMax: number; onStop: () => void },
  ) {
    this.endpoint = endpoint;
    this.#options = options;
  }

  async offer(offer: Offer): Promise<void> {
    const { events } = this.#options;
    const served = new ServedArtifact(packOffer(offer), (artifactId, fileIndex) =>
      events.fileChanged(artifactId, fileIndex),
    );
    this.#artifacts.set(offer.artifactId, served);
  }

  async relocate(artifactId: Hex32, files: readonly OfferedFile[]): Promise<void> {
    const served = this.#artifacts.get(artifactId);
    if (served === undefined) {
      throw new RelightError("not_found", `Cannot relocate ${artifactId}: it is not offered`);
    }
    served.relocate(packFiles(files));
  }

  async withdraw(artifactId: Hex32): Promise<void> {
    this.#artifacts.delete(artifactId);
  }

  stats(): ServerStats {
    return {
      readers: this.#readers,
      bytesSent: this.#bytesSent,
      refused: this.#refused,
      strangers: 0,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#options.onStop();
  }

  /** @throws RelightError `source_gone`. */
  artifact(artifactId: Hex32): ServedArtifact {
    const served = this.#artifacts.get(artifactId);
    if (served !== undefined) return served;
    throw new RelightError("source_gone", `Cannot read from ${this.endpoint}: not offered there`);
  }

  /** Takes one of the places for readers. @throws RelightError `source_busy`. */
  admit(): Disposable {
    if (this.#readers >= this.#options.readersMax) {
      this.#refused++;
      const { retryAfterMs } = serverLimits;
      throw new RelightError("source_busy", `Cannot read from ${this.endpoint} now: it is busy`, {
        details: { retryAfterMs },
      });
    }
    this.#readers++;
    return { [Symbol.dispose]: () => this.#readers-- };
  }

  /** The piece's bytes; null when they are refused. */
  read(served: ServedArtifact, piece: number): Buffer | null {
    const [segment] = served.pieceSegments([piece]);
    if (segment === undefined || segment.isRefused) return null;
    const { fileIndex, offset, length } = segment;
    const bytes = readSpan(served, { fileIndex, offset, length });
    if (bytes === null) served.lost(fileIndex);
    else this.#bytesSent += length;
    return bytes;
  }
}

class MemoryFetcher implements PieceFetcher {
  readonly #reach: (endpoint: string) => MemoryServer;

  constructor(reach: (endpoint: string) => MemoryServer) {
    this.#reach = reach;
  }

  async manifest(
    at: SourceAddress,
    limits: { readonly bytesMax: number },
    signal: AbortSignal,
  ): Promise<Buffer> {
    await turn(signal);
    return atMost(limits.bytesMax, this.#reach(at.endpoint).artifact(at.artifactId).manifest);
  }

  async statement(
    at: SourceAddress,
    limits: { readonly bytesMax: number },
    signal: AbortSignal,
  ): Promise<Buffer> {
    await turn(signal);
    const served = this.#reach(at.endpoint).artifact(at.artifactId);
    try {
      return atMost(limits.bytesMax, served.statement);
    } catch (error) {
      // As over the wire, where the target sees a status and not a code.
      if (!(error instanceof RelightError) || error.code !== "not_found") throw error;
      throw new RelightError("source_gone", error.message, { cause: error });
    }
  }

  async have(at: SourceAddress, pieceCount: number, signal: AbortSignal): Promise<PieceSet> {
    await turn(signal);
    const served = this.#reach(at.endpoint).artifact(at.artifactId);
    return PieceSet.fromBytes(pieceCount, served.haveBytes());
  }

  async pieces(
    { endpoint, artifactId, pieces, into }: PieceOrder,
    onVerified: (pieces: readonly number[]) => void,
    signal: AbortSignal,
  ): Promise<PieceReceipt> {
    await turn(signal);
    const server = this.#reach(endpoint);
    const served = server.artifact(artifactId);
    using _place = server.admit();
    const refused: number[] = [];
    let bytes = 0;
    for (const number of pieces) {
      // Between pieces the server may go, as a connection may break.
      this.#reach(endpoint);
      const piece = server.read(served, number);
      if (piece === null) {
        refused.push(number);
        continue;
      }
      accept(number, piece, into);
      bytes += piece.length;
      onVerified([number]);
      await turn(signal);
    }
    return { bytes, refused };
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

function atMost(bytesMax: number, body: Buffer): Buffer {
  if (body.length <= bytesMax) return Buffer.from(body);
  throw new RelightError(
    "source_protocol",
    `Cannot accept the answer: ${body.length} bytes, want at most ${bytesMax}`,
  );
}

function accept(number: number, bytes: Buffer, into: PieceOrder["into"]): void {
  const piece = into.pieces[number];
  const file = piece === undefined ? undefined : into.files[piece.fileIndex];
  assert(piece !== undefined && file !== undefined, "an order names pieces of its staging");
  new PieceIntake(into.finishing ?? null).accept(bytes, {
    piece: number,
    path: `${into.root}/${file.path}`,
    fileBytes: file.size,
    mode: file.mode,
    offset: piece.offset,
    length: piece.length,
    fileIndex: piece.fileIndex,
    digest: piece.digest,
  });
  into.have.add(number);
}

function readSpan(
  served: ServedArtifact,
  { fileIndex, offset, length }: { fileIndex: number; offset: number; length: number },
): Buffer | null {
  const file = served.file(fileIndex);
  if (file.inline !== null) return file.inline.subarray(offset, offset + length);
  const handle = openOffered(file);
  if (handle === null) return null;
  try {
    const bytes = Buffer.alloc(length);
    return readFully(handle, bytes, { at: 0, offset, length }) ? bytes : null;
  } finally {
    fs.closeSync(handle);
  }
}

/** Lets others run, as waiting for a socket would. */
async function turn(signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise(setImmediate);
  signal.throwIfAborted();
}
