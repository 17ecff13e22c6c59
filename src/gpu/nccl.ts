// SPDX-License-Identifier: Apache-2.0
// The few functions of libnccl that two GPUs need to send to one another, and how one is called without
// ever blocking: communicators are opened non-blocking and asked until they are done, or aborted.
// NCCL API, version 2.18 and later; the library is found at first use.

import koffi, { type LibraryHandle } from "koffi";
import { type Code, RelightError } from "../errors.ts";
import type { PairMove, Wait } from "./driver.ts";
import { checkWait } from "./wait.ts";

const functions = {
  ncclGetVersion: "void *version",
  ncclGetUniqueId: "void *id",
  ncclCommInitRankConfig: "void *comm, int ranks, RelightNcclId id, int rank, void *config",
  ncclCommGetAsyncError: "uint64_t comm, void *error",
  ncclCommAbort: "uint64_t comm",
  ncclGroupStart: "",
  ncclGroupEnd: "",
  ncclSend: "uint64_t from, size_t count, int type, int peer, uint64_t comm, uint64_t stream",
  ncclRecv: "uint64_t to, size_t count, int type, int peer, uint64_t comm, uint64_t stream",
} as const;

type Name = keyof typeof functions;
type Argument = number | bigint | NodeJS.ArrayBufferView | { readonly bytes: Uint8Array };

const idBytes = 128;
const success = 0;
const inProgress = 7;
/** ncclRemoteError, and ncclSystemError, which a closed socket is as often told as. */
const peerGone: ReadonlySet<number> = new Set([2, 6]);
/** ncclInvalidUsage: what it says of two ends on one GPU. */
const invalidUsage = 5;
const byteType = 0; // ncclInt8
const oldestVersion = 21_800;
const configBytes = 48;
const configMagic = 0xcafebeef;
const undefinedInt = -(2 ** 31);

export class Nccl {
  readonly version: number;
  readonly #library: LibraryHandle;
  readonly #bound = new Map<Name, (...args: Argument[]) => number>();

  private constructor(library: LibraryHandle) {
    this.#library = library;
    const version = new Int32Array(1);
    this.#call("ncclGetVersion", version);
    this.version = version[0] ?? 0;
  }

  /** @throws device_unsupported when there is no such library, or one that is too old. */
  static open(file: string): Nccl {
    const nccl = new Nccl(load(file));
    if (nccl.version >= oldestVersion) return nccl;
    throw new RelightError(
      "device_unsupported",
      `Cannot use ${file}: its version is ${nccl.version}, wanted ${oldestVersion} or later`,
    );
  }

  id(): Uint8Array {
    const id = new Uint8Array(idBytes);
    this.#call("ncclGetUniqueId", id);
    return id;
  }

  /** A communicator of two, the device's context being current. It may not have met the other end yet. */
  begin({ id, rank }: { readonly id: Uint8Array; readonly rank: 0 | 1 }): bigint {
    const comm = new BigUint64Array(1);
    const meeting = { bytes: Uint8Array.from(id) };
    const result = this.#result("ncclCommInitRankConfig", comm, 2, meeting, rank, config());
    if (result !== success && result !== inProgress) throw ncclError("meet", result);
    return comm[0] ?? 0n;
  }

  /** Enqueues all moves as one group; `settle` says when they are on the stream. */
  enqueue(
    comm: bigint,
    { moves, peer, stream }: { moves: readonly PairMove[]; peer: 0 | 1; stream: bigint },
  ): void {
    this.#call("ncclGroupStart");
    for (const { do: way, address, bytes } of moves) {
      const name = way === "send" ? "ncclSend" : "ncclRecv";
      this.#begun(name, address, bytes, byteType, peer, comm, stream);
    }
    this.#begun("ncclGroupEnd");
  }

  /** @throws source_unreachable, transport_unavailable, device_failed; gives whether what was begun is done */
  isSettled(comm: bigint): boolean {
    const state = new Int32Array(1);
    const result = this.#result("ncclCommGetAsyncError", comm, state);
    const now = result === success ? (state[0] ?? 0) : result;
    if (now === inProgress) return false;
    if (now !== success) throw ncclError("go on", now);
    return true;
  }

  /** Also ends kernels of it that wait for the other end. */
  abort(comm: bigint): void {
    this.#result("ncclCommAbort", comm);
  }

  #begun(name: Name, ...args: Argument[]): void {
    const result = this.#result(name, ...args);
    if (result !== success && result !== inProgress) throw ncclError(name, result);
  }

  #call(name: Name, ...args: Argument[]): void {
    const result = this.#result(name, ...args);
    if (result !== success) throw ncclError(name, result);
  }

  #result(name: Name, ...args: Argument[]): number {
    const known = this.#bound.get(name) ?? this.#bind(name);
    return known(...args);
  }

  #bind(name: Name): (...args: Argument[]) => number {
    const bound = this.#library.func(`int ${name}(${functions[name]})`);
    this.#bound.set(name, bound);
    return bound;
  }
}

/** Asks until it is settled. Between two questions others of this thread get their turn. */
export async function settle(
  nccl: Nccl,
  comm: bigint,
  { wait, pause }: { readonly wait: Wait; readonly pause: () => Promise<void> },
): Promise<void> {
  const deadline = performance.now() + wait.deadlineMs;
  while (!nccl.isSettled(comm)) {
    checkWait(wait, deadline);
    await pause();
  }
}

/** ncclConfig_t as version 2.18 has it: all undefined but that nothing may block. */
function config(): Uint8Array {
  const bytes = Buffer.alloc(configBytes);
  bytes.writeBigUInt64LE(BigInt(configBytes), 0);
  bytes.writeUInt32LE(configMagic, 8);
  bytes.writeUInt32LE(oldestVersion, 12);
  bytes.writeInt32LE(0, 16); // blocking
  // cgaClusterSize, minCTAs, maxCTAs; at 32 the name of a network, null; at 40 splitShare.
  for (const offset of [20, 24, 28, 40]) bytes.writeInt32LE(undefinedInt, offset);
  return bytes;
}

function load(file: string): LibraryHandle {
  try {
    const library = koffi.load(file);
    koffi.struct("RelightNcclId", { bytes: koffi.array("uint8_t", idBytes, "Typed") });
    return library;
  } catch (cause) {
    throw new RelightError("device_unsupported", `Cannot open ${file}: it is not on this machine`, {
      details: { library: file },
      cause,
    });
  }
}

function ncclError(what: string, result: number): RelightError {
  return new RelightError(
    codeOf(result),
    `Cannot ${what} with the other GPU: NCCL says ${result}`,
    { details: { result } },
  );
}

function codeOf(result: number): Code {
  if (peerGone.has(result)) return "source_unreachable";
  return result === invalidUsage ? "transport_unavailable" : "device_failed";
}
