// SPDX-License-Identifier: Apache-2.0
// The table of commands: name words, one sentence, and where the command lives. A command's file is
// loaded only when it runs, so that `relight --help` and short commands load no gRPC, LMDB or FFI.

import type { Command } from "./command.ts";

export interface CommandEntry {
  readonly summary: string;
  readonly load: () => Promise<{ readonly command: Command }>;
}

export const commands: Readonly<Record<string, CommandEntry>> = {
  doctor: {
    summary: "Check this machine, the configuration and the way to the coordinator.",
    load: () => import("./doctor.ts"),
  },
  "config show": {
    summary: "Show every setting with its value and where it comes from.",
    load: () => import("./config-show.ts"),
  },
  "config check": {
    summary: "Read the configuration as every command does and report all that is wrong.",
    load: () => import("./config-check.ts"),
  },
};
