// SPDX-License-Identifier: Apache-2.0
// Which relative paths may come from outside. One function decides, for the manifest and for every
// later use, so that no second spelling of the rule can be weaker.

/** Bytes of the whole path and of one name; PATH_MAX and NAME_MAX of Linux with room for the root. */
export const pathLimits = { pathBytesMax: 2_048, nameBytesMax: 255, depthMax: 64 } as const;

/** Folders of ours inside a cache's root. Never sealed, never accepted. */
export const ownFolder = ".relight";

/** Letters, digits and signs of ASCII: their spelling is normal, and a character is a byte. */
const plainPath = /^[\x20-\x5b\x5d-\x7e]*$/;

/** Plain names, none beginning with a dot: a short path of these breaks no rule. Most are of this kind. */
const simplePath = /^[\w-][\w.-]*(?:\/[\w-][\w.-]*)*$/;
/** Shorter than any limit on names and paths, and too short to be too deep. */
const simpleBytesMax = 120;

/** Why a path is refused, in words; null when it may be used below a root. */
export function unsafePath(path: string): string | null {
  if (path.length <= simpleBytesMax && simplePath.test(path)) return null;
  if (path === "") return "it is empty";
  if (path.startsWith("/")) return "it is absolute";
  if (path.includes("\\")) return "it holds a backslash";
  const isPlain = plainPath.test(path);
  if (!isPlain && hasControl(path)) return "it holds a control character";
  if (!isPlain && (!path.isWellFormed() || path !== path.normalize("NFC")))
    return "it is not normalised Unicode";
  const bytesOf = (text: string) => (isPlain ? text.length : Buffer.byteLength(text));
  if (bytesOf(path) > pathLimits.pathBytesMax) return "it is too long";
  const names = path.split("/");
  if (names.length > pathLimits.depthMax) return "it is too deep";
  for (const name of names) {
    if (name === "" || name === "." || name === "..") return `it holds the name "${name}"`;
    if (bytesOf(name) > pathLimits.nameBytesMax) return "a name in it is too long";
  }
  return names[0]?.toLowerCase() === ownFolder ? "it lies in Relight's own folder" : null;
}

/** Equal for two paths that a case-folding or normalising file system would take for one. */
export function collisionKey(path: string): string {
  return (plainPath.test(path) ? path : path.normalize("NFKC")).toLowerCase();
}

function hasControl(path: string): boolean {
  for (let at = 0; at < path.length; at++) {
    const code = path.charCodeAt(at);
    if (code < 0x20 || code === 0x7f) return true;
  }
  return false;
}
