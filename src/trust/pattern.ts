// SPDX-License-Identifier: Apache-2.0
// How a policy names many things at once. Always anchored at both ends, by whole segments, and never a
// regular expression: a forgotten anchor in one has let any signer pass elsewhere.

/** A SPIFFE id: trust domain, then path segments that no parser reads in two ways. */
const spiffe = /^spiffe:\/\/[a-z0-9._-]{1,255}(\/[A-Za-z0-9._-]{1,128}){1,8}$/;
const dnsName = /^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.){1,10}[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

export function isSpiffeId(text: string): boolean {
  return spiffe.test(text) && !/\/\.{1,2}(\/|$)/.test(text);
}

export function isDnsName(text: string): boolean {
  return text.length <= 253 && dnsName.test(text);
}

/** An id, or one whose last segment is `*`: "spiffe://fleet/author/*". */
export function isSpiffePattern(text: string): boolean {
  return isSpiffeId(text.replace(/\/\*$/, "/any"));
}

/** A name, or one whose first label is `*`: "*.warmers.example.com". */
export function isDnsPattern(text: string): boolean {
  return isDnsName(text.replace(/^\*\./, "any."));
}

/** `*` stands for exactly one last segment. */
export function matchesSpiffe(pattern: string, id: string): boolean {
  if (!isSpiffeId(id)) return false;
  if (!pattern.endsWith("/*")) return pattern === id;
  const head = pattern.slice(0, -1);
  return id.startsWith(head) && !id.slice(head.length).includes("/");
}

/** `*` stands for exactly one first label. */
export function matchesDns(pattern: string, name: string): boolean {
  if (!isDnsName(name)) return false;
  if (!pattern.startsWith("*.")) return pattern === name;
  return name.slice(name.indexOf(".")) === pattern.slice(1);
}

/**
 * For families, models and environments: the word itself, `*` for any, or a head and `/*` for all
 * below it ("meta-llama/*").
 */
export function matchesWord(pattern: string, word: string): boolean {
  if (pattern === "*") return true;
  if (!pattern.endsWith("/*")) return pattern === word;
  const head = pattern.slice(0, -1);
  return word.startsWith(head) && word.length > head.length;
}
