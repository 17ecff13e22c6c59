// SPDX-License-Identifier: Apache-2.0
// Which of the byte path's requests a target makes. Pure: the server acts on what this returns.

import { type Hex32, isHex32 } from "../core/digest.ts";
import { RelightError } from "../errors.ts";

export type Route =
  | { readonly kind: "health" }
  | { readonly kind: "manifest" | "statement" | "have"; readonly artifactId: Hex32 }
  | { readonly kind: "pieces"; readonly artifactId: Hex32; readonly ranges: string }
  | { readonly kind: "file"; readonly artifactId: Hex32; readonly fileIndex: number };

const artifactPath =
  /^\/v1\/artifacts\/([0-9a-f]{64})\/(manifest|statement|have|pieces|files\/(\d{1,7}))$/;

/** @throws RelightError `request_invalid` or `not_found`. */
export function parseRoute(url: string): Route {
  const [pathname = "", query] = url.split("?", 2);
  if (pathname === "/healthz") return { kind: "health" };
  const match = artifactPath.exec(pathname);
  const artifactId = match?.[1] ?? "";
  if (match === null || !isHex32(artifactId)) {
    throw new RelightError("not_found", `Cannot serve "${pathname.slice(0, 100)}": no such path`);
  }
  const [, , kind] = match;
  if (kind === "manifest" || kind === "statement" || kind === "have") return { kind, artifactId };
  if (kind === "pieces") return { kind: "pieces", artifactId, ranges: parseQuery(query) };
  return { kind: "file", artifactId, fileIndex: Number(match[3]) };
}

export interface ByteSpan {
  readonly offset: number;
  readonly length: number;
}

/**
 * The one range that a Range header asks for; null when there is no header, or one that RFC 9110 lets
 * a server ignore (other units, several ranges).
 * @throws RelightError `request_invalid` when the range lies outside the file.
 */
export function parseByteRange(header: string | undefined, size: number): ByteSpan | null {
  const match = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? "");
  if (match === null) return null;
  const [, from = "", to = ""] = match;
  if (from === "" && to === "") return null;
  const first = from === "" ? Math.max(0, size - Number(to)) : Number(from);
  const last = from === "" || to === "" ? size - 1 : Math.min(Number(to), size - 1);
  if (first >= size || last < first) {
    throw new RelightError("request_invalid", `Cannot serve range ${from}-${to} of ${size} bytes`);
  }
  return { offset: first, length: last - first + 1 };
}

function parseQuery(query: string | undefined): string {
  const ranges = /^ranges=([0-9,-]+)$/.exec(query ?? "")?.[1];
  if (ranges === undefined) {
    throw new RelightError("request_invalid", "Cannot read the query: want ranges=0-4,7");
  }
  return ranges;
}
