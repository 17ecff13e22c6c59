// SPDX-License-Identifier: Apache-2.0
// Each command of the contract as the driver's call that enqueues it. The stream's context is current.

import { RelightError } from "../errors.ts";
import type { Blas } from "./blas.ts";
import { cudaError, cudaSuccess } from "./cuda-errors.ts";
import type {
  BlasHandle,
  Command,
  EventHandle,
  GraphHandle,
  HostHandle,
  KernelHandle,
} from "./driver.ts";
import type { Libcuda } from "./functions.ts";
import { packParams } from "./launch.ts";
import type { PackedCommand, PackedCopies } from "./packed-copies.ts";

/** The driver's own handles behind ours. @throws handle_closed */
export interface RawHandles {
  event(handle: EventHandle): bigint;
  graph(handle: GraphHandle): bigint;
  kernel(handle: KernelHandle): bigint;
  blas(handle: BlasHandle): {
    readonly blas: Blas;
    readonly raw: bigint;
    readonly workspace: bigint;
  };
  host(handle: HostHandle): Uint8Array;
}

const deviceMemory = 2; // CU_MEMORYTYPE_DEVICE
const inStreamOrder = 1; // CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
const notSupported = 801; // CUDA_ERROR_NOT_SUPPORTED
/** The batch call's way of saying that it cannot do these; one by one they may still work. */
const batchRefusals: ReadonlySet<number> = new Set([1, notSupported]);

export class CudaCommands {
  readonly #cuda: Libcuda;
  readonly #raw: RawHandles;
  #hasBatchCopy = true;

  constructor(cuda: Libcuda, raw: RawHandles) {
    this.#cuda = cuda;
    this.#raw = raw;
  }

  enqueue(stream: bigint, command: PackedCommand): void {
    // The driver refuses empty copies; here they are nothing.
    if (isEmpty(command)) return;
    const cuda = this.#cuda;
    switch (command.do) {
      case "copy":
        cuda.call("cuMemcpyDtoDAsync_v2", command.to, command.from, command.bytes, stream);
        break;
      case "copies":
        this.#copyAll(stream, command);
        break;
      case "copy_rows":
        cuda.call("cuMemcpy2DAsync_v2", rowsStruct(command), stream);
        break;
      case "fill":
        cuda.call("cuMemsetD8Async", command.to, command.byte, command.bytes, stream);
        break;
      case "upload":
        this.#upload(stream, command);
        break;
      case "from_host":
        cuda.call("cuMemcpyHtoDAsync_v2", command.to, this.#hostAt(command), command.bytes, stream);
        break;
      case "to_host":
        cuda.call(
          "cuMemcpyDtoHAsync_v2",
          this.#hostAt(command),
          command.from,
          command.bytes,
          stream,
        );
        break;
      case "record":
        cuda.call("cuEventRecord", this.#raw.event(command.event), stream);
        break;
      case "await":
        cuda.call("cuStreamWaitEvent", stream, this.#raw.event(command.event), 0);
        break;
      case "gemm": {
        const { blas, raw, workspace } = this.#raw.blas(command.blas);
        blas.enqueue(raw, command, { stream, workspace });
        break;
      }
      case "launch":
        this.#launch(stream, command);
        break;
      case "graph":
        cuda.call("cuGraphLaunch", this.#raw.graph(command.graph), stream);
        break;
    }
  }

  /** One call for all where the driver has it (CUDA 13), which is 12 us a copy less. */
  #copyAll(stream: bigint, { to, from, bytes }: PackedCopies): void {
    if (this.#hasBatchCopy) {
      const result = this.#batchCopy(stream, { to, from, bytes });
      if (result === cudaSuccess) return;
      if (!batchRefusals.has(result)) throw cudaError("cuMemcpyBatchAsync_v2", result);
      this.#hasBatchCopy = false;
    }
    for (let index = 0; index < to.length; index += 1) {
      const pair = [to[index] ?? 0n, from[index] ?? 0n, bytes[index] ?? 0n] as const;
      this.#cuda.call("cuMemcpyDtoDAsync_v2", ...pair, stream);
    }
  }

  #batchCopy(stream: bigint, { to, from, bytes }: Omit<PackedCopies, "do">): number {
    const attributes = Buffer.alloc(24); // CUmemcpyAttributes: order, two location hints, flags.
    attributes.writeInt32LE(inStreamOrder, 0);
    const indices = new BigUint64Array(1);
    try {
      const count = to.length;
      return this.#cuda.result(
        "cuMemcpyBatchAsync_v2",
        to,
        from,
        bytes,
        count,
        attributes,
        indices,
        1,
        stream,
      );
    } catch (error) {
      if (error instanceof RelightError && error.code === "device_unsupported") return notSupported;
      throw error;
    }
  }

  #hostAt({ host, offsetBytes, bytes }: { host: HostHandle; offsetBytes: number; bytes: number }) {
    const memory = this.#raw.host(host);
    if (offsetBytes >= 0 && offsetBytes + bytes <= memory.byteLength) {
      return memory.subarray(offsetBytes, offsetBytes + bytes);
    }
    throw new RelightError(
      "request_invalid",
      `Cannot copy ${bytes} bytes at ${offsetBytes} of host memory: it has ${memory.byteLength}`,
    );
  }

  /** From pageable memory the driver has taken the bytes when the call returns. */
  #upload(stream: bigint, { to, bytes }: Extract<Command, { do: "upload" }>): void {
    this.#cuda.call("cuMemcpyHtoDAsync_v2", to, bytes, bytes.byteLength, stream);
  }

  #launch(stream: bigint, command: Extract<Command, { do: "launch" }>): void {
    const raw = this.#raw.kernel(command.kernel);
    const { grid, block, sharedBytes } = command;
    const pointers = packParams(command.params);
    const shape = [...grid, ...block, sharedBytes, stream, pointers] as const;
    if (command.cooperative) this.#cuda.call("cuLaunchCooperativeKernel", raw, ...shape);
    else this.#cuda.call("cuLaunchKernel", raw, ...shape, null);
  }
}

function isEmpty(command: PackedCommand): boolean {
  const hasBytes = "bytes" in command && typeof command.bytes === "number";
  if (hasBytes) return command.bytes === 0;
  if (command.do === "upload") return command.bytes.byteLength === 0;
  return command.do === "copy_rows" && (command.rows === 0 || command.rowBytes === 0);
}

/** CUDA_MEMCPY2D, 128 bytes: source, destination, extent. */
function rowsStruct(copy: Extract<Command, { do: "copy_rows" }>): Uint8Array {
  const bytes = Buffer.alloc(128);
  bytes.writeUInt32LE(deviceMemory, 16);
  bytes.writeBigUInt64LE(copy.from, 32);
  bytes.writeBigUInt64LE(BigInt(copy.fromPitchBytes), 48);
  bytes.writeUInt32LE(deviceMemory, 72);
  bytes.writeBigUInt64LE(copy.to, 88);
  bytes.writeBigUInt64LE(BigInt(copy.toPitchBytes), 104);
  bytes.writeBigUInt64LE(BigInt(copy.rowBytes), 112);
  bytes.writeBigUInt64LE(BigInt(copy.rows), 120);
  return bytes;
}
