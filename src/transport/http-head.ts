// SPDX-License-Identifier: Apache-2.0
// Reads the head of an HTTP/1.1 response (RFC 9112) that a source sends. Narrow on purpose: a status,
// an exact Content-Length, Connection and Retry-After. Whatever else would change how the body is
// framed (chunks, a second length, folded lines) is refused rather than understood.

import { RelightError } from "../errors.ts";

export interface ResponseHead {
  readonly status: number;
  readonly contentLength: number;
  /** The source will close the connection after this response. */
  readonly closes: boolean;
  /** From Retry-After in seconds; null when absent or a date. */
  readonly retryAfterMs: number | null;
  /** Bytes of the head, its empty line included. */
  readonly bytes: number;
}

const statusLine = /^HTTP\/1\.1 ([2-5]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?$/;
const fieldLine = /^([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)$/;
const headersMax = 64;

/**
 * The head at the beginning of `bytes`; null while it is incomplete.
 * @throws RelightError `source_protocol`.
 */
export function parseHead(bytes: Buffer, bytesMax: number): ResponseHead | null {
  const end = bytes.subarray(0, bytesMax).indexOf("\r\n\r\n", 0, "latin1");
  if (end === -1) {
    refuseEarly(bytes, bytesMax);
    return null;
  }
  const [first = "", ...lines] = bytes.toString("latin1", 0, end).split("\r\n");
  const status = Number(statusLine.exec(first)?.[1] ?? refuse("its first line is not HTTP/1.1"));
  const headers = parseHeaders(lines);
  if (headers.has("transfer-encoding")) refuse("it has a transfer encoding");
  if (headers.has("content-encoding")) refuse("it has a content encoding");
  return {
    status,
    contentLength: parseLength(headers.get("content-length")),
    closes: /\bclose\b/i.test(headers.get("connection") ?? ""),
    retryAfterMs: parseSeconds(headers.get("retry-after")),
    bytes: end + 4,
  };
}

/** An endless or foreign answer is noticed before the head is complete. */
function refuseEarly(bytes: Buffer, bytesMax: number): void {
  if (bytes.length >= bytesMax) refuse(`its head is longer than ${bytesMax} bytes`);
  const wanted = "HTTP/1.1 ";
  const got = bytes.toString("latin1", 0, wanted.length);
  if (!wanted.startsWith(got)) refuse("its first line is not HTTP/1.1");
}

function parseHeaders(lines: readonly string[]): Map<string, string> {
  if (lines.length > headersMax)
    refuse(`it has ${lines.length} headers, want at most ${headersMax}`);
  const headers = new Map<string, string>();
  for (const line of lines) {
    const match = fieldLine.exec(line);
    if (match === null) refuse("a header line is malformed");
    const name = (match[1] ?? "").toLowerCase();
    // A second length is how one response is smuggled into another.
    if (name === "content-length" && headers.has(name)) refuse("it has two lengths");
    headers.set(name, (match[2] ?? "").trimEnd());
  }
  return headers;
}

function parseLength(text: string | undefined): number {
  if (text === undefined) return refuse("it has no Content-Length");
  if (!/^\d{1,15}$/.test(text)) return refuse("its Content-Length is not a number");
  return Number(text);
}

function parseSeconds(text: string | undefined): number | null {
  return text !== undefined && /^\d{1,6}$/.test(text) ? Number(text) * 1_000 : null;
}

function refuse(reason: string): never {
  throw new RelightError("source_protocol", `Cannot read the source's response: ${reason}`);
}
