// SPDX-License-Identifier: Apache-2.0
// Memory that travels as a file descriptor: created or imported, mapped into one range of addresses and
// made reachable for one device. The driver keeps it alive as long as any process has it mapped, also
// after its creator was killed (measured on H200, driver 580).

import type { Libcuda } from "./functions.ts";

const pinned = 1; // CU_MEM_ALLOCATION_TYPE_PINNED
const onDevice = 1; // CU_MEM_LOCATION_TYPE_DEVICE
const posixDescriptor = 1; // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
const readWrite = 3; // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
const minimum = 0; // CU_MEM_ALLOC_GRANULARITY_MINIMUM

export interface Mapping {
  readonly address: bigint;
  readonly mappedBytes: number;
  /** One per piece, in the order of the addresses. */
  readonly pieces: readonly { readonly handle: bigint; readonly bytes: number }[];
}

export function createMapping(cuda: Libcuda, device: number, bytes: number): Mapping {
  const properties = allocationProperties(device);
  const granularity = Number(cuda.out64("cuMemGetAllocationGranularity", properties, minimum));
  const mappedBytes = Math.ceil(bytes / granularity) * granularity;
  const handle = cuda.out64("cuMemCreate", mappedBytes, properties, 0);
  return mapOrRelease(cuda, device, [{ handle, bytes: mappedBytes }]);
}

export function importMapping(
  cuda: Libcuda,
  device: number,
  pieces: readonly { readonly descriptor: number; readonly bytes: number }[],
): Mapping {
  const imported: { handle: bigint; bytes: number }[] = [];
  try {
    for (const { descriptor, bytes } of pieces) {
      const handle = cuda.out64("cuMemImportFromShareableHandle", descriptor, posixDescriptor);
      imported.push({ handle, bytes });
    }
  } catch (error) {
    for (const { handle } of imported) cuda.result("cuMemRelease", handle);
    throw error;
  }
  return mapOrRelease(cuda, device, imported);
}

/** Open files of this process, one per piece; the caller closes them. */
export function exportMapping(cuda: Libcuda, mapping: Mapping) {
  return mapping.pieces.map(({ handle, bytes }) => ({
    descriptor: cuda.out32("cuMemExportToShareableHandle", handle, posixDescriptor, 0),
    bytes,
  }));
}

export function releaseMapping(cuda: Libcuda, mapping: Mapping): void {
  cuda.result("cuMemUnmap", mapping.address, mapping.mappedBytes);
  for (const { handle } of mapping.pieces) cuda.result("cuMemRelease", handle);
  cuda.result("cuMemAddressFree", mapping.address, mapping.mappedBytes);
}

function mapOrRelease(cuda: Libcuda, device: number, pieces: Mapping["pieces"]): Mapping {
  const mappedBytes = pieces.reduce((sum, piece) => sum + piece.bytes, 0);
  let address = 0n;
  try {
    address = cuda.out64("cuMemAddressReserve", mappedBytes, 0, 0, 0);
    let next = address;
    for (const { handle, bytes } of pieces) {
      cuda.call("cuMemMap", next, bytes, 0, handle, 0);
      next += BigInt(bytes);
    }
    cuda.call("cuMemSetAccess", address, mappedBytes, accessOf(device), 1);
    return { address, mappedBytes, pieces };
  } catch (error) {
    releaseMapping(cuda, { address, mappedBytes, pieces });
    throw error;
  }
}

/** CUmemAllocationProp: type, handle types, location, a pointer for another system, flags. 32 bytes. */
function allocationProperties(device: number): Uint8Array {
  const bytes = Buffer.alloc(32);
  bytes.writeInt32LE(pinned, 0);
  bytes.writeInt32LE(posixDescriptor, 4);
  bytes.writeInt32LE(onDevice, 8);
  bytes.writeInt32LE(device, 12);
  return bytes;
}

/** CUmemAccessDesc: location, flags. 12 bytes. */
function accessOf(device: number): Uint8Array {
  const bytes = Buffer.alloc(12);
  bytes.writeInt32LE(onDevice, 0);
  bytes.writeInt32LE(device, 4);
  bytes.writeInt32LE(readWrite, 8);
  return bytes;
}
