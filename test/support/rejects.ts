// SPDX-License-Identifier: Apache-2.0
// A promise that must fail with one code of the error table.

import assert from "node:assert/strict";
import { type Code, RelightError } from "../../src/errors.ts";

export async function rejectsWith(code: Code, promise: Promise<unknown>): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof RelightError, String(error));
    assert.equal(error.code, code, error.message);
    return true;
  });
}
