// SPDX-License-Identifier: Apache-2.0
// Reads the subjects of a statement that is spelled canonically and plainly in one pass, as manifest-scan.ts
// does for a manifest: an entry has exactly the characters that `encodeStatement` writes, or the whole
// statement is left to the general reader (statement.ts).

import type { Digest, Hex32 } from "../core/digest.ts";
import { chunksLength, type PlainFile, scanChunks } from "./manifest-scan.ts";

export interface ScannedStatement {
  /** Everything but the subjects, as JSON; its own spelling is still to be checked. */
  readonly head: string;
  readonly files: readonly PlainFile[];
}

/** Not inside a text: a quote there has a backslash before it. */
const subjects = ',"subject":[';
const annotations = '{"annotations":';
const digestLength = 64;
/** An entry behind its chunks. Names: characters that JSON writes as they are. */
const rest =
  /,"form":"(?:plain|rooted)","mode":4(?:20|93),"size":(?:0|[1-9]\d{0,14})\},"digest":\{"blake3(?:-chunked)?":"[0-9a-f]{64}"\},"name":"[\x20\x21\x23-\x5b\x5d-\x7e]{1,4096}"\}[,\]]/y;
const plain = /^[\x20-\x7e]*$/;

/**
 * The subjects of the statement whose canonical bytes are `text`, each value of its kind; null for any
 * other text, also for a canonical one that is not plain. Limits, paths and sizes are still to be checked.
 */
export function scanStatement(text: string): ScannedStatement | null {
  const headEnd = text.indexOf(subjects);
  const head = `${text.slice(0, headEnd)}}`;
  if (headEnd === -1 || !plain.test(head)) return null;
  const files: PlainFile[] = [];
  let at = headEnd + subjects.length;
  do {
    if (!text.startsWith(annotations, at)) return null;
    const chunksAt = at + annotations.length;
    const chunks = scanChunks(text, chunksAt);
    if (chunks === null) return null;
    const begin = chunksAt + chunksLength(chunks);
    rest.lastIndex = begin;
    if (!rest.test(text)) return null;
    at = rest.lastIndex;
    files.push(valuesOf(text, { begin, end: at, chunks }));
  } while (text[at - 1] === ",");
  return text.slice(at) === "}" ? { head, files } : null;
}

/** Of an entry that `rest` has found good: what follows what is fixed. */
function valuesOf(
  text: string,
  { begin, end, chunks }: { begin: number; end: number; chunks: readonly Hex32[] },
): PlainFile {
  const formAt = begin + ',"form":"'.length;
  const form = text[formAt] === "p" ? "plain" : "rooted";
  const modeAt = formAt + form.length + '","mode":'.length;
  const sizeAt = modeAt + '420,"size":'.length;
  const sizeEnd = text.indexOf("}", sizeAt);
  const algorithmAt = sizeEnd + '},"digest":{"'.length;
  const algorithmEnd = text.indexOf('"', algorithmAt);
  const hexAt = algorithmEnd + '":"'.length;
  const hexEnd = hexAt + digestLength;
  const algorithm = text.slice(algorithmAt, algorithmEnd);
  return {
    path: text.slice(hexEnd + '"},"name":"'.length, end - '"},'.length),
    mode: text[modeAt + 1] === "2" ? 0o644 : 0o755,
    size: Number(text.slice(sizeAt, sizeEnd)),
    form,
    digest: `${algorithm}:${text.slice(hexAt, hexEnd)}` as Digest,
    chunks,
  };
}
