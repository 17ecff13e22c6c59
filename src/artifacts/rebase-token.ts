// SPDX-License-Identifier: Apache-2.0
// What stands for the cache's root in the portable form of a file.

/** A relative path follows. On the wire: never changed. */
export const rootToken = "relight-root:/";
