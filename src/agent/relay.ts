// SPDX-License-Identifier: Apache-2.0
// What this replica passes on of what it receives: while it still receives, from staging, and once
// installed, from the cache. A relayed artifact has the original's manifest, id and signatures.

import path from "node:path";
import type { Family } from "../artifacts/family.ts";
import { listPieces, type ManifestFile, type SealedManifest } from "../artifacts/manifest.ts";
import { PieceSet } from "../core/pieces.ts";
import { asRelightError } from "../errors.ts";
import type { Log } from "../observe/log.ts";
import type { OfferedFile, PieceServer, Staging } from "../transport/transport.ts";

export interface Relay {
  /** Serves verified pieces from staging as they arrive. */
  receiving(transfer: {
    family: Family;
    manifest: SealedManifest;
    statement?: Buffer | undefined;
    staging: Staging;
  }): Promise<void>;
  /** Serves the installed files under their final names. */
  installed(installation: {
    family: Family;
    manifest: SealedManifest;
    statement?: Buffer | undefined;
    /** In manifest order; null for what is not there as it was installed. */
    files: readonly (OfferedFile | null)[];
  }): Promise<void>;
  /** The transfer failed: nothing of it is served or offered any more. */
  dropped(transfer: { family: Family; artifactId: string }): Promise<void>;
}

/** Tells the coordinator what can be had here; failures cost others a source, never this boot. */
export type Announce = (offer: {
  family: Family;
  manifest: SealedManifest;
  isComplete: boolean;
}) => Promise<void>;

/** Passes nothing on: publishing is switched off or the coordinator is out of reach. */
export const noRelay: Relay = {
  receiving: async () => {},
  installed: async () => {},
  dropped: async () => {},
};

/** Takes an announcement back, in the background: nobody's boot waits for it. */
export type Retract = (offer: { family: Family; artifactId: string }) => void;

export function createRelay(options: {
  server: PieceServer;
  announce: Announce;
  retract: Retract;
  log: Log;
}): Relay {
  const { server, announce, retract, log } = options;
  const attempt = async (work: () => Promise<void>) => {
    try {
      await work();
    } catch (thrown) {
      const { code, message } = asRelightError(thrown);
      log.warn("failure", { code, message });
    }
  };
  return {
    receiving: ({ family, manifest, statement, staging }) =>
      attempt(async () => {
        const files = manifest.files.map((file) => ({
          path: path.join(staging.root, file.path),
          size: file.size,
          stamp: null,
        }));
        await server.offer({
          artifactId: manifest.artifactId,
          manifest: manifest.bytes,
          ...(statement === undefined ? {} : { statement }),
          files,
          pieces: staging.pieces,
          have: staging.have,
        });
        await announce({ family, manifest, isComplete: false });
      }),
    installed: ({ family, manifest, statement, files }) =>
      attempt(async () => {
        const pieces = listPieces(manifest);
        const have = new PieceSet(pieces.length);
        for (const [index, piece] of pieces.entries()) if (files[piece.fileIndex]) have.add(index);
        const offered = files.map((file, index) => file ?? absentFile(manifest.files[index]));
        await server.offer({
          artifactId: manifest.artifactId,
          manifest: manifest.bytes,
          ...(statement === undefined ? {} : { statement }),
          files: offered,
          pieces,
          have,
        });
        await announce({ family, manifest, isComplete: have.count() === have.size });
      }),
    dropped: ({ family, artifactId }) => {
      retract({ family, artifactId });
      return attempt(() => server.withdraw(artifactId as SealedManifest["artifactId"]));
    },
  };
}

/** Its pieces are not in `have`, so that nobody is served from it. */
function absentFile(file: ManifestFile | undefined): OfferedFile {
  return { path: "/nonexistent", size: file?.size ?? 0, stamp: null };
}
