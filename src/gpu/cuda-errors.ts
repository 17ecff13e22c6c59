// SPDX-License-Identifier: Apache-2.0
// The one place where a CUresult becomes a RelightError. Numbers, not texts, decide.

import { type Code, type Details, RelightError } from "../errors.ts";

interface Meaning {
  readonly name: string;
  readonly code: Code;
}

/** CUresult values whose reader does something else than for `device_failed`. cuda.h, enum cudaError_enum. */
const meanings: Readonly<Record<number, Meaning>> = {
  1: { name: "CUDA_ERROR_INVALID_VALUE", code: "device_failed" },
  2: { name: "CUDA_ERROR_OUT_OF_MEMORY", code: "device_memory" },
  3: { name: "CUDA_ERROR_NOT_INITIALIZED", code: "device_lost" },
  4: { name: "CUDA_ERROR_DEINITIALIZED", code: "device_lost" },
  34: { name: "CUDA_ERROR_STUB_LIBRARY", code: "device_absent" },
  46: { name: "CUDA_ERROR_DEVICE_UNAVAILABLE", code: "device_failed" },
  100: { name: "CUDA_ERROR_NO_DEVICE", code: "device_absent" },
  101: { name: "CUDA_ERROR_INVALID_DEVICE", code: "device_failed" },
  200: { name: "CUDA_ERROR_INVALID_IMAGE", code: "device_unsupported" },
  201: { name: "CUDA_ERROR_INVALID_CONTEXT", code: "device_failed" },
  209: { name: "CUDA_ERROR_NO_BINARY_FOR_GPU", code: "device_unsupported" },
  217: { name: "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", code: "device_unsupported" },
  218: { name: "CUDA_ERROR_INVALID_PTX", code: "device_unsupported" },
  222: { name: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", code: "device_unsupported" },
  304: { name: "CUDA_ERROR_OPERATING_SYSTEM", code: "device_failed" },
  400: { name: "CUDA_ERROR_INVALID_HANDLE", code: "device_failed" },
  500: { name: "CUDA_ERROR_NOT_FOUND", code: "device_unsupported" },
  600: { name: "CUDA_ERROR_NOT_READY", code: "device_failed" },
  700: { name: "CUDA_ERROR_ILLEGAL_ADDRESS", code: "device_lost" },
  701: { name: "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", code: "device_unsupported" },
  702: { name: "CUDA_ERROR_LAUNCH_TIMEOUT", code: "device_lost" },
  704: { name: "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", code: "device_failed" },
  709: { name: "CUDA_ERROR_CONTEXT_IS_DESTROYED", code: "device_lost" },
  710: { name: "CUDA_ERROR_ASSERT", code: "device_lost" },
  714: { name: "CUDA_ERROR_HARDWARE_STACK_ERROR", code: "device_lost" },
  715: { name: "CUDA_ERROR_ILLEGAL_INSTRUCTION", code: "device_lost" },
  716: { name: "CUDA_ERROR_MISALIGNED_ADDRESS", code: "device_lost" },
  717: { name: "CUDA_ERROR_INVALID_ADDRESS_SPACE", code: "device_lost" },
  718: { name: "CUDA_ERROR_INVALID_PC", code: "device_lost" },
  719: { name: "CUDA_ERROR_LAUNCH_FAILED", code: "device_lost" },
  800: { name: "CUDA_ERROR_NOT_PERMITTED", code: "device_failed" },
  801: { name: "CUDA_ERROR_NOT_SUPPORTED", code: "device_unsupported" },
  803: { name: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", code: "device_absent" },
  999: { name: "CUDA_ERROR_UNKNOWN", code: "device_failed" },
};

export const cudaSuccess = 0;
export const cudaNotReady = 600;
export const cudaPeerAlreadyEnabled = 704;

/** Opening another process's memory: what the driver calls a bad value means that the giver is gone. */
const foreign: ReadonlySet<string> = new Set([
  "cuIpcOpenMemHandle_v2",
  "cuMemImportFromShareableHandle",
]);
const foreignResults: ReadonlySet<number> = new Set([1, 101, 201, 304, 400, 999]);

/** @param call the driver function, @param result its CUresult, not zero. */
export function cudaError(call: string, result: number, details: Details = {}): RelightError {
  const known = meanings[result];
  const name = known?.name ?? `CUresult ${result}`;
  return new RelightError(codeOf(call, result), `Cannot ${call}: the driver says ${name}`, {
    details: { ...details, call, result },
  });
}

function codeOf(call: string, result: number): Code {
  if (foreign.has(call) && foreignResults.has(result)) return "device_handle_invalid";
  return meanings[result]?.code ?? "device_failed";
}
