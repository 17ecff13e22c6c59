// SPDX-License-Identifier: Apache-2.0
// The process behind `relight`: hands arguments, environment, streams and signals to dispatch.ts and
// exits with its code. bin/relight starts it.

import { readFileSync } from "node:fs";
import { RelightError } from "../errors.ts";
import { systemClock } from "../platform/clock.ts";
import { commands } from "./commands.ts";
import { dispatch } from "./dispatch.ts";

/** Time for open sockets and files to close after a command has ended, in milliseconds. */
const lingerMsMax = 2_000;

process.stdout.on("error", endWhenReaderLeft);
process.stderr.on("error", endWhenReaderLeft);

process.exitCode = await dispatch(process.argv.slice(2), commands, {
  environment: process.env,
  workingDirectory: process.cwd(),
  streams: {
    out: (text) => process.stdout.write(text),
    err: (text) => process.stderr.write(text),
    isErrTerminal: process.stderr.isTTY === true,
  },
  version: packageVersion(),
  now: systemClock.wallMs,
  cancelSignal,
});

// Not process.exit() at once: it would cut what is still being written to a pipe.
setTimeout(() => process.exit(), lingerMsMax).unref();

/** `relight ... | head` is not an error. */
function endWhenReaderLeft(error: NodeJS.ErrnoException): void {
  process.exit(error.code === "EPIPE" ? 0 : 70);
}

function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  const manifest: unknown = JSON.parse(text);
  const isManifest = typeof manifest === "object" && manifest !== null && "version" in manifest;
  return isManifest ? String(manifest.version) : "unknown";
}

/** The first signal asks the command to end, the second ends the process. */
function cancelSignal(): AbortSignal {
  const controller = new AbortController();
  for (const [name, number] of [
    ["SIGINT", 2],
    ["SIGTERM", 15],
  ] as const) {
    process.once(name, () => {
      const message = `Cannot go on: ${name} asked to stop`;
      controller.abort(new RelightError("cancelled", message, { details: { signal: name } }));
      process.once(name, () => process.exit(128 + number));
    });
  }
  return controller.signal;
}
