// SPDX-License-Identifier: Apache-2.0
// The public API, by explicit names. Importing it opens nothing, loads no native library and reads no
// environment. What is not exported here may change in any version.

export type { Blame, Code, CodeFacts, Details, Retry } from "./errors.ts";
export { codes, RelightError } from "./errors.ts";
