// SPDX-License-Identifier: Apache-2.0
// The one function of cuBLAS that we need, a batched matrix product, with its handle. The library is
// loaded at first use; engines bring theirs. cuBLAS API, version 12 and later.

import koffi, { type LibraryHandle } from "koffi";
import { RelightError } from "../errors.ts";
import type { Command } from "./driver.ts";

type Gemm = Extract<Command, { do: "gemm" }>;

const functions = {
  cublasCreate_v2: "void *handle",
  cublasDestroy_v2: "uint64_t handle",
  cublasSetStream_v2: "uint64_t handle, uint64_t stream",
  cublasSetWorkspace_v2: "uint64_t handle, uint64_t workspace, size_t bytes",
  cublasGemmStridedBatchedEx:
    "uint64_t handle, int opA, int opB, int m, int n, int k, void *alpha, uint64_t A, int typeA, int lda, int64_t strideA, uint64_t B, int typeB, int ldb, int64_t strideB, void *beta, uint64_t C, int typeC, int ldc, int64_t strideC, int batch, int compute, int algorithm",
} as const;

type Name = keyof typeof functions;
type Argument = number | bigint | NodeJS.ArrayBufferView;

const transposed = 1;
const asIs = 0;
const types = { f32: 0, bf16: 14 } as const; // cudaDataType
const computeF32 = 68;
const anyAlgorithm = -1;
const one = new Float32Array([1]);
const zero = new Float32Array([0]);
const names = ["libcublas.so.13", "libcublas.so.12"];
/** What NVIDIA advises for Hopper. */
export const blasWorkspaceBytes = 32 * 2 ** 20;

export class Blas {
  readonly #library: LibraryHandle;
  readonly #bound = new Map<Name, (...args: Argument[]) => number>();

  private constructor(library: LibraryHandle) {
    this.#library = library;
  }

  /** @param file null: by its usual names. @throws device_unsupported when there is no such library */
  static open(file: string | null): Blas {
    for (const name of file === null ? names : [file]) {
      const library = tryLoad(name);
      if (library !== null) return new Blas(library);
    }
    throw new RelightError(
      "device_unsupported",
      `Cannot open ${file ?? names.join(" or ")}: it is not on this machine`,
      { details: { library: file ?? names.join(" or ") } },
    );
  }

  /** The device's context being current. */
  create(): bigint {
    const handle = new BigUint64Array(1);
    this.#call("cublasCreate_v2", handle);
    return handle[0] ?? 0n;
  }

  destroy(handle: bigint): void {
    this.#function("cublasDestroy_v2")(handle);
  }

  /** Rows before columns: cuBLAS counts the other way, so that the factors change places. */
  enqueue(
    handle: bigint,
    gemm: Gemm,
    { stream, workspace }: { readonly stream: bigint; readonly workspace: bigint },
  ): void {
    this.#call("cublasSetStream_v2", handle, stream);
    // Setting the stream has taken the workspace away; one of its own lets the call be captured.
    this.#call("cublasSetWorkspace_v2", handle, workspace, blasWorkspaceBytes);
    const { rows, columns, depth } = gemm;
    this.#call(
      "cublasGemmStridedBatchedEx",
      ...[handle, transposed, asIs, columns, rows, depth, one],
      ...[gemm.weights, types.bf16, depth, BigInt(gemm.weightsStride)],
      ...[gemm.x, types.bf16, depth, BigInt(gemm.xStride), zero],
      ...[gemm.out, types[gemm.outType], columns, BigInt(gemm.outStride)],
      ...[gemm.batch, computeF32, anyAlgorithm],
    );
  }

  #call(name: Name, ...args: Argument[]): void {
    const result = this.#function(name)(...args);
    if (result === 0) return;
    throw new RelightError("device_failed", `Cannot ${name}: cuBLAS says ${result}`, {
      details: { call: name, result },
    });
  }

  #function(name: Name): (...args: Argument[]) => number {
    const known = this.#bound.get(name);
    if (known !== undefined) return known;
    const bound = this.#library.func(`int ${name}(${functions[name]})`);
    this.#bound.set(name, bound);
    return bound;
  }
}

function tryLoad(file: string): LibraryHandle | null {
  try {
    return koffi.load(file);
  } catch {
    return null; // The caller says which names it tried.
  }
}
