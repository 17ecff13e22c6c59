// SPDX-License-Identifier: Apache-2.0
// grpc.health.v1 and server reflection, from their published packages, over our generated descriptors.

import { type DescFile, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import type { Server } from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation, service as healthService } from "grpc-health-check";
import { file_p2p, P2pService } from "../protocol/gen/p2p_pb.ts";
import { Coordinator, file_relight } from "../protocol/gen/relight_pb.ts";

const served = ["", P2pService.typeName, Coordinator.typeName];

export interface Health {
  set(isServing: boolean): void;
}

export function addHealth(server: Server): Health {
  const health = new HealthImplementation(
    Object.fromEntries(served.map((name) => [name, "SERVING"])),
  );
  health.addToServer(server);
  return {
    set: (isServing) => {
      for (const name of served) health.setStatus(name, isServing ? "SERVING" : "NOT_SERVING");
    },
  };
}

export function addReflection(server: Server): void {
  const [health] = Object.values(healthService);
  const descriptors = [...[file_p2p, file_relight].map(encoded), ...protosOf(health)];
  const files = { files: descriptorsOf(descriptors) };
  new ReflectionService(files).addToServer(server);
}

type PackageDefinition = ConstructorParameters<typeof ReflectionService>[0];
type Definition = PackageDefinition[string];

/** The reflection package reads `fileDescriptorProtos` of its input and nothing else. */
function descriptorsOf(fileDescriptorProtos: readonly Buffer[]): Definition {
  return {
    format: "Protocol Buffer 3 DescriptorProto",
    type: {},
    fileDescriptorProtos: [...fileDescriptorProtos],
  } as unknown as Definition;
}

function protosOf(method: unknown): readonly Buffer[] {
  const { requestType } = method as {
    readonly requestType: { readonly fileDescriptorProtos: Buffer[] };
  };
  return requestType.fileDescriptorProtos;
}

function encoded(file: DescFile): Buffer {
  return Buffer.from(toBinary(FileDescriptorProtoSchema, file.proto));
}
