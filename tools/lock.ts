// SPDX-License-Identifier: Apache-2.0
// `npm run lock`, after a dependency changed: names in package-lock.json the optional packages of other
// platforms that the registry in use does not carry. `npm install` leaves them out there, and `npm ci`
// then refuses the lock file on every machine. An entry without integrity is fetched by its exact
// version, and only on its own platform.

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

interface Entry {
  readonly version?: string;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

interface Lock {
  packages: Record<string, Entry>;
}

const path = fileURLToPath(new URL("../package-lock.json", import.meta.url));
const exact = /^\d+\.\d+\.\d+$/;

/** What a package's name says about its platform, in npm's words. */
const words = {
  os: /\b(android|darwin|freebsd|linux|openharmony|win32)\b/,
  cpu: /\b(arm64|armv7|arm|ia32|ppc64|riscv64|s390x|x64)\b/,
};

const lock: Lock = JSON.parse(readFileSync(path, "utf8"));
const missing = Object.entries(lock.packages).flatMap(([parent, entry]) =>
  Object.entries(entry.optionalDependencies ?? {})
    .filter(([name]) => !isNamed(parent, name))
    .map(([name, version]) => [name, entryOf(name, version)] as const),
);
for (const [name, entry] of missing) lock.packages[`node_modules/${name}`] = entry;
const sorted = Object.entries(lock.packages).sort(([a], [b]) => a.localeCompare(b, "en"));
lock.packages = Object.fromEntries(sorted);
writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`);
console.log(`${missing.length} packages of other platforms added`);

function isNamed(parent: string, name: string): boolean {
  const places = [`node_modules/${name}`, `${parent}/node_modules/${name}`];
  return places.some((place) => Object.hasOwn(lock.packages, place));
}

function entryOf(name: string, version: string) {
  const os = words.os.exec(name)?.[1];
  const cpu = words.cpu.exec(name)?.[1]?.replace("armv7", "arm");
  if (os === undefined || cpu === undefined || !exact.test(version)) {
    throw new Error(`Cannot complete the lock file: ${name} ${version} tells no platform`);
  }
  const isMusl = /musl/.test(name);
  const libc =
    os === "linux" && /-gnu|-musl/.test(name) ? { libc: [isMusl ? "musl" : "glibc"] } : {};
  return { version, cpu: [cpu], ...libc, optional: true, os: [os] };
}
