// SPDX-License-Identifier: Apache-2.0
// The port on which pieces travel: a server offers artifacts, a fetcher brings verified pieces into
// staging. Everything handed over is structured-clonable, because implementations do their reading,
// hashing and writing in worker threads. docs/protocol.md has the bytes.

import type { Hex32 } from "../core/digest.ts";
import type { Piece, PieceSet } from "../core/pieces.ts";
import { KiB, MiB } from "../core/units.ts";

/** What tells a file from a later one under the same path. */
export interface FileStamp {
  readonly mtimeNs: bigint;
  readonly inode: bigint;
}

export interface OfferedFile {
  /** Absolute, on this node's disk. The last name must not be a link. */
  readonly path: string;
  /** Of what travels, in bytes. */
  readonly size: number;
  /** As sealed: a file that differs is refused. Null while it lies in staging, where only we write. */
  readonly stamp: FileStamp | null;
  /** Served instead of the file: the portable form of a rooted one. */
  readonly bytes?: Buffer;
}

export interface Offer {
  readonly artifactId: Hex32;
  /** The canonical bytes that `artifactId` is the digest of. */
  readonly manifest: Buffer;
  /**
   * The author's envelope, as it was signed: a relay hands on these very bytes. Not given where nobody
   * signed; targets then find none.
   */
  readonly statement?: Buffer;
  /** In manifest order, as are `pieces`. */
  readonly files: readonly OfferedFile[];
  readonly pieces: readonly Piece[];
  /** Which pieces can be served. Shared memory: what is added later is served at once. */
  readonly have: PieceSet;
}

export interface ServerStats {
  /** Responses with pieces under way. */
  readonly readers: number;
  readonly bytesSent: number;
  /** Readers turned away because `readersMax` were being served. */
  readonly refused: number;
  /** Connections ended unheard: too many at once, too many handshakes a second, or no proof of who it is. */
  readonly strangers: number;
}

/**
 * Serves what it is offered until it is disposed. Reading happens off the caller's thread. A call
 * that resolved holds for every request that begins afterwards.
 */
export interface PieceServer extends AsyncDisposable {
  /** `http://host:port` or `https://host:port`, what a target is told. */
  readonly endpoint: string;
  /** A second offer of the same artifact replaces the first. */
  offer(offer: Offer): Promise<void>;
  /** The same files under new paths: staging became final. @throws RelightError `not_found`. */
  relocate(artifactId: Hex32, files: readonly OfferedFile[]): Promise<void>;
  /** Later requests are answered with "gone". Those under way may finish. */
  withdraw(artifactId: Hex32): Promise<void>;
  stats(): ServerStats;
}

/** What a server tells its owner, on the owner's thread. */
export interface ServerEvents {
  /** A sealed file is no longer what was sealed; its pieces are refused from now on. Once per file. */
  fileChanged(artifactId: Hex32, fileIndex: number): void;
}

/** Where an artifact is to be had. */
export interface SourceAddress {
  /** `http://host:port` on loopback, else `https://host:port#ID` with the SPIFFE id it must prove. */
  readonly endpoint: string;
  readonly artifactId: Hex32;
}

export interface StagedFile {
  /** Relative to the staging root, checked by `unsafePath`. */
  readonly path: string;
  readonly size: number;
  /** Permission bits. */
  readonly mode: number;
}

/**
 * What else can be done to a file while its bytes are at hand, so that nobody has to open it again. It
 * may be left undone for any file: only `finished` says that it was done.
 */
export interface Finishing {
  /** Times that a file is given, in milliseconds of the wall clock. */
  readonly accessMs: number;
  readonly modifiedMs: number;
  /**
   * By position in the staging's list of files. Gains a file that came as one piece once it has its
   * bytes, mode and times and was seen to have the form that its name promises (src/core/structure.ts).
   */
  readonly finished: PieceSet;
}

/** Where verified pieces go. `root` exists and is private; folders below it are made when needed. */
export interface Staging {
  readonly root: string;
  /** In manifest order, as are `pieces`. */
  readonly files: readonly StagedFile[];
  readonly pieces: readonly Piece[];
  /** Gains each piece after its bytes are written: the same set may stand in an `Offer`. */
  readonly have: PieceSet;
  readonly finishing?: Finishing;
}

export interface PieceOrder extends SourceAddress {
  /** Ascending, distinct. */
  readonly pieces: readonly number[];
  readonly into: Staging;
}

export interface PieceReceipt {
  /** Verified bytes of pieces. */
  readonly bytes: number;
  /** Pieces that this source does not have, or no longer. */
  readonly refused: readonly number[];
}

/**
 * Fetches from sources that may be slow, broken or hostile. Memory is bounded by the number of calls
 * under way, never by sizes that a source names. Every method throws RelightError: `source_unreachable`,
 * `source_stalled` (silent, too slow, reset or short), `source_busy` (`retryAfterMs` in its details),
 * `source_gone`, `source_protocol`, `digest_mismatch`, a `disk_` code, or the signal's reason.
 */
export interface PieceFetcher extends AsyncDisposable {
  manifest(
    at: SourceAddress,
    limits: { readonly bytesMax: number },
    signal: AbortSignal,
  ): Promise<Buffer>;
  /** The author's envelope; `source_gone` from a source that has none. */
  statement(
    at: SourceAddress,
    limits: { readonly bytesMax: number },
    signal: AbortSignal,
  ): Promise<Buffer>;
  /** Which pieces the source can serve at this moment. */
  have(at: SourceAddress, pieceCount: number, signal: AbortSignal): Promise<PieceSet>;
  /**
   * Each piece is verified before a byte of it is written. `onVerified` is called with some of them
   * at a time, also before a failure, and not after the call has settled.
   */
  pieces(
    order: PieceOrder,
    onVerified: (pieces: readonly number[]) => void,
    signal: AbortSignal,
  ): Promise<PieceReceipt>;
}

export interface ServerLimits {
  /** Responses with pieces at the same time, over all artifacts. */
  readonly readersMax: number;
  /** Connections for each worker thread. */
  readonly connectionsMax: number;
  /** TLS handshakes begun in one second, for each worker thread. One costs about a millisecond. */
  readonly handshakesPerSecondMax: number;
  /** Request line and headers. */
  readonly headBytesMax: number;
  readonly headMsMax: number;
  /** Longest time that a connection may stay open without a request. */
  readonly idleMsMax: number;
  /** Longest time that a reader may take for `bufferBytes`. */
  readonly readerSilenceMsMax: number;
  readonly piecesPerRequestMax: number;
  readonly bytesPerRequestMax: number;
  /** Each reader has two of these. */
  readonly bufferBytes: number;
  /** What a target is asked to wait when it is turned away. */
  readonly retryAfterMs: number;
}

export const serverLimits: ServerLimits = {
  readersMax: 8,
  connectionsMax: 256,
  handshakesPerSecondMax: 100,
  headBytesMax: 16 * KiB,
  headMsMax: 5_000,
  idleMsMax: 30_000,
  readerSilenceMsMax: 20_000,
  piecesPerRequestMax: 4_096,
  bytesPerRequestMax: 256 * MiB,
  bufferBytes: 512 * KiB,
  retryAfterMs: 1_000,
};

export interface FetchLimits {
  readonly connectMsMax: number;
  readonly firstByteMsMax: number;
  /** Longest silence between bytes, and the span in which `progressBytesMin` must arrive. */
  readonly silenceMsMax: number;
  /** Against sources that drip: fewer bytes than this in a `silenceMsMax` count as a stall. */
  readonly progressBytesMin: number;
  readonly headBytesMax: number;
}

export const fetchLimits: FetchLimits = {
  connectMsMax: 3_000,
  firstByteMsMax: 5_000,
  silenceMsMax: 5_000,
  progressBytesMin: 64 * KiB,
  headBytesMax: 16 * KiB,
};
