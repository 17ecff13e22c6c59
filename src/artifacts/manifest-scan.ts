// SPDX-License-Identifier: Apache-2.0
// Reads a manifest that is spelled canonically and plainly in one pass, instead of making objects of it,
// looking at each and spelling them all again: an entry has exactly the characters that `encodeManifest`
// writes, or the whole manifest is left to the general reader (manifest.ts).

import type { Digest, Hex32 } from "../core/digest.ts";

/** A `Manifest` as manifest.ts has it, of plain entries. */
export interface PlainManifest {
  readonly family: string;
  readonly files: readonly PlainFile[];
}

export interface PlainFile {
  readonly path: string;
  readonly mode: 0o644 | 0o755;
  readonly size: number;
  readonly form: "plain" | "rooted";
  readonly digest: Digest;
  readonly chunks: readonly Hex32[];
}

const head = /\{"family":"([a-z0-9][a-z0-9._-]{0,63})","files":\[/y;
const noChunks = '{"chunks":[]';
const someChunks = '{"chunks":[';
const hexLength = 64;
/** One list for all entries without chunks: most have none. */
const none: readonly Hex32[] = Object.freeze([]);
const chunk = /"([0-9a-f]{64})"([,\]])/y;
/** An entry behind its chunks. Paths: characters that JSON writes as they are. */
const rest =
  /,"digest":"blake3(?:-chunked)?:[0-9a-f]{64}","form":"(?:plain|rooted)","mode":4(?:20|93),"path":"[\x20\x21\x23-\x5b\x5d-\x7e]{1,4096}","size":(?:0|[1-9]\d{0,14})\}[,\]]/y;

/**
 * The manifest whose canonical bytes are exactly `text`, each value of its kind; null for any other text,
 * also for a canonical one that is not plain. Limits, paths and sizes are still to be checked.
 */
export function scanManifest(text: string, format: string): PlainManifest | null {
  head.lastIndex = 0;
  const family = head.exec(text)?.[1];
  if (family === undefined) return null;
  const files: PlainFile[] = [];
  let at = head.lastIndex;
  do {
    const chunks = scanChunks(text, at);
    if (chunks === null) return null;
    const begin = at + chunksLength(chunks);
    rest.lastIndex = begin;
    // Without captures: an array of them for each entry costs more than finding the values again.
    if (!rest.test(text)) return null;
    at = rest.lastIndex;
    files.push(valuesOf(text, { begin, end: at, chunks }));
  } while (text[at - 1] === ",");
  return text.slice(at) === `,"format":"${format}"}` ? { family, files } : null;
}

/** Of an entry that `rest` has found good: what follows what is fixed. */
function valuesOf(
  text: string,
  { begin, end, chunks }: { begin: number; end: number; chunks: readonly Hex32[] },
): PlainFile {
  const digestAt = begin + ',"digest":"'.length;
  const digestEnd = text.indexOf('"', digestAt);
  const formAt = digestEnd + '","form":"'.length;
  const form = text[formAt] === "p" ? "plain" : "rooted";
  const modeAt = formAt + form.length + '","mode":'.length;
  const pathAt = modeAt + '420,"path":"'.length;
  const pathEnd = text.indexOf('"', pathAt);
  return {
    path: text.slice(pathAt, pathEnd),
    mode: text[modeAt + 1] === "2" ? 0o644 : 0o755,
    size: Number(text.slice(pathEnd + '","size":'.length, end - "},".length)),
    form,
    digest: text.slice(digestAt, digestEnd) as Digest,
    chunks,
  };
}

/** The digests of `{"chunks":[...]`; null where no such list begins. */
export function scanChunks(text: string, at: number): readonly Hex32[] | null {
  if (text.startsWith(noChunks, at)) return none;
  const chunks: Hex32[] = [];
  if (!text.startsWith(someChunks, at)) return null;
  chunk.lastIndex = at + someChunks.length;
  for (;;) {
    const match = chunk.exec(text);
    if (match === null) return null;
    chunks.push(match[1] as Hex32);
    if (match[2] === "]") return chunks;
  }
}

/** With the brace, the key, both brackets, and quotes and commas between. */
export function chunksLength({ length }: readonly Hex32[]): number {
  return someChunks.length + Math.max(1, length * '"",'.length + length * hexLength);
}
