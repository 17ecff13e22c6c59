// SPDX-License-Identifier: Apache-2.0
// Memory that travels as a file descriptor: created or imported, mapped into one range of addresses and
// made reachable for one device. The driver keeps it alive as long as any process has it mapped, also
// after its creator was killed (measured on H200, driver 580).

import { RelightError } from "../errors.ts";
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
  return mapOrRelease(cuda, device, importPieces(cuda, pieces));
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

function importPieces(
  cuda: Libcuda,
  pieces: readonly { readonly descriptor: number; readonly bytes: number }[],
): readonly Piece[] {
  const imported: Piece[] = [];
  try {
    for (const { descriptor, bytes } of pieces) {
      const handle = cuda.out64("cuMemImportFromShareableHandle", descriptor, posixDescriptor);
      imported.push({ handle, bytes });
    }
    return imported;
  } catch (error) {
    for (const { handle } of imported) cuda.result("cuMemRelease", handle);
    throw error;
  }
}

/** One range of addresses cut into slots; a slot's pieces are what is mapped there now. */
export interface SlotRange {
  readonly address: bigint;
  readonly count: number;
  readonly slotBytes: number;
  readonly device: number;
  readonly sink: Piece;
  readonly slots: Slot[];
}

interface Piece {
  readonly handle: bigint;
  readonly bytes: number;
}

interface Slot {
  readonly isFilled: boolean;
  readonly pieces: readonly Piece[];
}

/** A sink larger than this saves no more mappings worth its memory. */
const sinkBytesMax = 16 * 2 ** 20;

export function reserveSlots(
  cuda: Libcuda,
  device: number,
  want: { readonly count: number; readonly slotBytes: number },
): SlotRange {
  const properties = allocationProperties(device);
  const granularity = Number(cuda.out64("cuMemGetAllocationGranularity", properties, minimum));
  const rounded = (bytes: number, to: number) => Math.ceil(bytes / to) * to;
  const sinkBytes = Math.min(rounded(want.slotBytes, granularity), sinkBytesMax);
  const slotBytes = rounded(want.slotBytes, sinkBytes);
  const handle = cuda.out64("cuMemCreate", sinkBytes, properties, 0);
  const sink = { handle, bytes: sinkBytes };
  let range: SlotRange = { address: 0n, count: want.count, slotBytes, device, sink, slots: [] };
  try {
    const address = cuda.out64("cuMemAddressReserve", slotBytes * want.count, 0, 0, 0);
    range = { ...range, address };
    for (let index = 0; index < want.count; index += 1) {
      const rests = mapSlot(cuda, range, index, { isFilled: false, pieces: sinkPieces(range) });
      while (rests.next().done !== true);
    }
    return range;
  } catch (error) {
    releaseSlots(cuda, range);
    throw error;
  }
}

/**
 * Comes to rest between calls of the driver, each of which takes up to milliseconds: what others wait for
 * goes in between. The slot is a sink after a failure.
 * @throws request_invalid, device_handle_invalid
 */
export function* fillSlot(
  cuda: Libcuda,
  range: SlotRange,
  index: number,
  pieces: readonly { readonly descriptor: number; readonly bytes: number }[],
): Generator<void> {
  checkFit(range, index, pieces);
  const imported = importPieces(cuda, pieces);
  yield;
  const filled = imported.reduce((sum, { bytes }) => sum + bytes, 0);
  unmapSlot(cuda, range, index);
  yield;
  try {
    const rest = sinkPieces(range, filled);
    yield* mapSlot(cuda, range, index, { isFilled: true, pieces: [...imported, ...rest] });
  } catch (error) {
    unmapSlot(cuda, range, index);
    releasePieces(cuda, range, imported);
    yield* mapSlot(cuda, range, index, { isFilled: false, pieces: sinkPieces(range) });
    throw error;
  }
}

/** Rests as fillSlot() does. */
export function* emptySlot(cuda: Libcuda, range: SlotRange, index: number): Generator<void> {
  const slot = range.slots[index];
  if (slot === undefined || !slot.isFilled) return;
  unmapSlot(cuda, range, index);
  yield;
  releasePieces(cuda, range, slot.pieces);
  yield* mapSlot(cuda, range, index, { isFilled: false, pieces: sinkPieces(range) });
}

export function releaseSlots(cuda: Libcuda, range: SlotRange): void {
  range.slots.forEach((slot, index) => {
    unmapSlot(cuda, range, index);
    releasePieces(cuda, range, slot.pieces);
  });
  cuda.result("cuMemRelease", range.sink.handle);
  cuda.result("cuMemAddressFree", range.address, range.slotBytes * range.count);
}

function checkFit(
  range: SlotRange,
  index: number,
  pieces: readonly { readonly bytes: number }[],
): void {
  const bytes = pieces.reduce((sum, piece) => sum + piece.bytes, 0);
  const slot = range.slots[index];
  if (slot !== undefined && !slot.isFilled && bytes <= range.slotBytes) return;
  const state = slot === undefined ? "does not exist" : slot.isFilled ? "is taken" : "is too small";
  throw new RelightError(
    "request_invalid",
    `Cannot map ${bytes} bytes into slot ${index}: it ${state}, slots have ${range.slotBytes}`,
  );
}

/** The sink again and again, from `from` to the slot's end. */
function sinkPieces(range: SlotRange, from = 0): readonly Piece[] {
  const pieces: Piece[] = [];
  for (let at = from; at < range.slotBytes; at += range.sink.bytes) {
    pieces.push({
      handle: range.sink.handle,
      bytes: Math.min(range.sink.bytes, range.slotBytes - at),
    });
  }
  return pieces;
}

function* mapSlot(cuda: Libcuda, range: SlotRange, index: number, slot: Slot): Generator<void> {
  const address = range.address + BigInt(index * range.slotBytes);
  // Known first: unmapping what a failure here left half mapped goes by this list.
  range.slots[index] = slot;
  let next = address;
  for (const { handle, bytes } of slot.pieces) {
    cuda.call("cuMemMap", next, bytes, 0, handle, 0);
    next += BigInt(bytes);
  }
  yield;
  cuda.call("cuMemSetAccess", address, range.slotBytes, accessOf(range.device), 1);
}

/** The driver unmaps only what one call had mapped. */
function unmapSlot(cuda: Libcuda, range: SlotRange, index: number): void {
  let next = range.address + BigInt(index * range.slotBytes);
  for (const { bytes } of range.slots[index]?.pieces ?? []) {
    cuda.result("cuMemUnmap", next, bytes);
    next += BigInt(bytes);
  }
}

function releasePieces(cuda: Libcuda, range: SlotRange, pieces: readonly Piece[]): void {
  for (const { handle } of pieces) {
    if (handle !== range.sink.handle) cuda.result("cuMemRelease", handle);
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
