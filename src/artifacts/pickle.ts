// SPDX-License-Identifier: Apache-2.0
// Changes single strings of a Python pickle without loading it: the opcodes are read one after the
// other (protocol 2 and later, as Lib/pickletools.py documents them), a changed string gets its new
// length, and so does the frame around it. Nothing else of the bytes changes. Pickles are foreign
// bytes: every length is checked against what is left.

import { RelightError } from "../errors.ts";

/** More changed strings than any cache has; a bound on what hostile bytes make us keep. */
const editsMax = 200_000;

/** A string's bytes in, the bytes in its place out; null leaves it. */
export type ChangeString = (text: Buffer) => Buffer | null;

interface Edit {
  readonly at: number;
  /** Bytes of the original that go. */
  readonly length: number;
  readonly bytes: Buffer;
}

interface Frame {
  readonly at: number;
  readonly end: number;
  grown: number;
}

const protocolOpcode = 0x80;
const frameOpcode = 0x95;
const stopOpcode = 0x2e;
const globalOpcode = 0x63;
const shortTextOpcode = 0x8c;
const textOpcode = 0x58;
const longTextOpcode = 0x8d;
const frameHeaderBytes = 9;

/** Opcodes with an argument of fixed size: argument bytes by opcode. */
const fixed: ReadonlyMap<number, number> = new Map([
  // MARK STOP POP POP_MARK DUP NONE BINPERSID REDUCE APPEND BUILD DICT EMPTY_DICT APPENDS LIST
  ...withArgument(0, "(.012NQRabd}el]st)uo"),
  // NEWOBJ TUPLE1-3 NEWTRUE NEWFALSE EMPTY_SET ADDITEMS FROZENSET NEWOBJ_EX STACK_GLOBAL MEMOIZE
  ...withArgument(0, "\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98"),
  // BININT1 BINGET BINPUT PROTO EXT1; BININT2 EXT2; BININT LONG_BINGET LONG_BINPUT EXT4; BINFLOAT
  ...withArgument(1, "Khq\x80\x82"),
  ...withArgument(2, "M\x83"),
  ...withArgument(4, "Jjr\x84"),
  ...withArgument(8, "G"),
]);

/** Opcodes whose argument is a length and so many bytes: bytes of the length by opcode. */
const prefixed: ReadonlyMap<number, number> = new Map([
  // SHORT_BINSTRING SHORT_BINBYTES LONG1 SHORT_BINUNICODE; BINSTRING BINBYTES LONG4 BINUNICODE
  ...withArgument(1, "UC\x8a\x8c"),
  ...withArgument(4, "TB\x8bX"),
  // BINUNICODE8 BINBYTES8 BYTEARRAY8
  ...withArgument(8, "\x8d\x8e\x96"),
]);

/**
 * The pickle with `change` applied to each of its strings; the same buffer when none changes.
 * @throws RelightError `structure_invalid` when the bytes are not one whole pickle of a known protocol.
 */
export function changeStrings(pickle: Buffer, change: ChangeString): Buffer {
  const edits: Edit[] = [];
  const frames = new Frames(edits);
  if (pickle[0] !== protocolOpcode) throw refuse("it does not begin with a protocol");
  let at = 0;
  for (;;) {
    frames.leave(at);
    const opcode = pickle[at];
    if (opcode === undefined) throw refuse("it ends before its last opcode");
    if (opcode === frameOpcode) {
      frames.enter(at, at + frameHeaderBytes + readLength(pickle, at + 1, 8), pickle.length);
      at += frameHeaderBytes;
      continue;
    }
    const end = endOf(pickle, at, opcode);
    frames.hold(end);
    if (opcode === shortTextOpcode || opcode === textOpcode || opcode === longTextOpcode) {
      const edit = editOf(pickle, { at, end, opcode }, change);
      if (edit !== null) frames.grow(edit);
    }
    at = end;
    if (opcode === stopOpcode) break;
  }
  frames.leave(at);
  if (at !== pickle.length || frames.isOpen) throw refuse("something follows its last opcode");
  return applyEdits(pickle, edits);
}

/** The frame that is open, and what became longer in it. */
class Frames {
  readonly #edits: Edit[];
  #open: Frame | null = null;

  constructor(edits: Edit[]) {
    this.#edits = edits;
  }

  get isOpen(): boolean {
    return this.#open !== null;
  }

  enter(at: number, end: number, size: number): void {
    if (this.#open !== null || end > size) throw refuse("its frames are damaged");
    this.#open = { at, end, grown: 0 };
  }

  /** An opcode may not reach beyond the frame that it begins in. */
  hold(end: number): void {
    if (this.#open !== null && end > this.#open.end) throw refuse("its frames are damaged");
  }

  grow(edit: Edit): void {
    if (this.#edits.length >= editsMax) throw refuse("too many of its strings change");
    this.#edits.push(edit);
    if (this.#open !== null) this.#open.grown += edit.bytes.length - edit.length;
  }

  leave(at: number): void {
    if (this.#open === null || at < this.#open.end) return;
    const { at: began, end, grown } = this.#open;
    if (grown !== 0) {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64LE(BigInt(end - began - frameHeaderBytes + grown));
      this.#edits.push({ at: began + 1, length: 8, bytes });
    }
    this.#open = null;
  }
}

/** Where the opcode at `at` ends. */
function endOf(pickle: Buffer, at: number, opcode: number): number {
  const argumentBytes = fixed.get(opcode);
  if (argumentBytes !== undefined) return checkEnd(pickle, at + 1 + argumentBytes);
  const lengthBytes = prefixed.get(opcode);
  if (lengthBytes !== undefined)
    return checkEnd(pickle, at + 1 + lengthBytes + readLength(pickle, at + 1, lengthBytes));
  if (opcode === globalOpcode) return lineEnd(pickle, lineEnd(pickle, at + 1));
  throw refuse(`opcode 0x${opcode.toString(16)} is unknown or too old`);
}

function lineEnd(pickle: Buffer, at: number): number {
  const newline = pickle.indexOf(0x0a, at);
  if (newline === -1) throw refuse("a line in it has no end");
  return newline + 1;
}

function readLength(pickle: Buffer, at: number, bytes: number): number {
  checkEnd(pickle, at + bytes);
  if (bytes < 8) return pickle.readUIntLE(at, bytes);
  const length = pickle.readBigUInt64LE(at);
  if (length > BigInt(pickle.length)) throw refuse("a length in it is beyond its end");
  return Number(length);
}

function checkEnd(pickle: Buffer, end: number): number {
  if (end > pickle.length) throw refuse("it ends within an opcode");
  return end;
}

function editOf(
  pickle: Buffer,
  { at, end, opcode }: { at: number; end: number; opcode: number },
  change: ChangeString,
): Edit | null {
  const text = pickle.subarray(at + 1 + (prefixed.get(opcode) ?? 0), end);
  const changed = change(text);
  return changed === null ? null : { at, length: end - at, bytes: encodeText(changed) };
}

/** With the opcode that Python's own pickler takes for a string of this length. */
function encodeText(text: Buffer): Buffer {
  if (text.length < 256) return Buffer.concat([Buffer.from([shortTextOpcode, text.length]), text]);
  const head = Buffer.alloc(5);
  head[0] = textOpcode;
  head.writeUInt32LE(text.length, 1);
  return Buffer.concat([head, text]);
}

function applyEdits(pickle: Buffer, edits: Edit[]): Buffer {
  if (edits.length === 0) return pickle;
  // A frame's length is known only at its end, and stands before the strings in it.
  edits.sort((left, right) => left.at - right.at);
  const parts: Buffer[] = [];
  let done = 0;
  for (const { at, length, bytes } of edits) {
    parts.push(pickle.subarray(done, at), bytes);
    done = at + length;
  }
  parts.push(pickle.subarray(done));
  return Buffer.concat(parts);
}

function withArgument(bytes: number, opcodes: string): [number, number][] {
  return [...opcodes].map((opcode) => [opcode.charCodeAt(0), bytes]);
}

function refuse(reason: string): RelightError {
  return new RelightError("structure_invalid", `Cannot read pickle: ${reason}`);
}
