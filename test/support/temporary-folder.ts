// SPDX-License-Identifier: Apache-2.0
// A folder for one test, removed when the test ends, also when it fails.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";

export interface TemporaryFolder extends Disposable {
  /** Absolute path of something inside. */
  path(relative: string): string;
  write(relative: string, bytes: Buffer | string): void;
}

export function temporaryFolder(): TemporaryFolder {
  const root = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "relight-test-")));
  return {
    path: (relative) => path.join(root, relative),
    write: (relative, bytes) => {
      const file = path.join(root, relative);
      fs.mkdirSync(path.dirname(file), { recursive: true });
      fs.writeFileSync(file, bytes);
    },
    [Symbol.dispose]: () => fs.rmSync(root, { recursive: true, force: true }),
  };
}
