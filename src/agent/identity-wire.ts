// SPDX-License-Identifier: Apache-2.0
// An identity as the coordinator's SourceIdentity. Facts with a field of their own go there; the rest
// are extra parameters, prefixed so that they cannot collide with a ModelExpress client's.

import { create } from "@bufbuild/protobuf";
import type { Identity } from "../artifacts/identity.ts";
import {
  BackendFramework,
  MxSourceType,
  type SourceIdentity,
  SourceIdentitySchema,
} from "../protocol/gen/p2p_pb.ts";

const frameworks: Readonly<Record<string, BackendFramework>> = {
  vllm: BackendFramework.VLLM,
  sglang: BackendFramework.SGLANG,
  "tensorrt-llm": BackendFramework.TRT_LLM,
};
const ownFields = new Set([
  "framework",
  "framework_version",
  "torch",
  "cuda",
  "triton",
  "gpu_arch",
  "model",
  "revision",
  "tp",
  "pp",
  "ep",
  "dtype",
  "quantization",
  "compile_config",
]);

/**
 * The same identity as it stands in a statement: one flat map, lower-cased as the coordinator does it for
 * its id, so that whoever finds each other also agrees on this.
 */
export function toStatementIdentity({ facts, extra }: Identity): Record<string, string> {
  const own = Object.entries(facts).map(([name, value]) => [name, value ?? ""] as const);
  const added = Object.entries(extra).map(([name, value]) => [`user.${name}`, value] as const);
  return Object.fromEntries(
    [...own, ...added].map(([name, value]) => [name.toLowerCase(), value.toLowerCase()]),
  );
}

export function frameworkNumber(name: string | undefined): BackendFramework {
  return frameworks[name ?? ""] ?? BackendFramework.UNKNOWN;
}

export function toSourceIdentity({ family, sourceType, facts, extra }: Identity): SourceIdentity {
  const rest = Object.entries(facts).filter(([name]) => !ownFields.has(name));
  return create(SourceIdentitySchema, {
    // The version of this mapping, not of Relight: two releases must be able to exchange.
    mxVersion: "relight.identity.v1",
    mxSourceType:
      Object.values(MxSourceType).find((value) => value === sourceType) ??
      MxSourceType.TORCH_COMPILE_CACHE,
    // ListSources takes an empty name for "any model", so an unknown model has a name too.
    modelName: facts.model ?? "-",
    backendFramework: frameworkNumber(facts.framework),
    tensorParallelSize: Number(facts.tp ?? 0),
    pipelineParallelSize: Number(facts.pp ?? 0),
    expertParallelSize: Number(facts.ep ?? 0),
    dtype: facts.dtype ?? "",
    quantization: facts.quantization ?? "",
    revision: facts.revision ?? "",
    backendFrameworkVersion: facts.framework_version ?? "",
    torchVersion: facts.torch ?? "",
    cudaVersion: facts.cuda ?? "",
    tritonVersion: facts.triton ?? "",
    gpuArch: facts.gpu_arch ?? "",
    compileConfigDigest: facts.compile_config ?? "",
    extraParameters: {
      "relight.family": family,
      ...Object.fromEntries(rest.map(([name, value]) => [`relight.${name}`, value ?? ""])),
      ...Object.fromEntries(Object.entries(extra).map(([name, value]) => [`user.${name}`, value])),
    },
  });
}

/**
 * Fact by fact, how `other` differs from `own`: "torch: 2.11 there, 2.10 here"; null when it is not of the
 * same family, or not an agent's.
 */
export function differencesOf(own: SourceIdentity, other: SourceIdentity): string[] | null {
  const [here, there] = [flatten(own), flatten(other)];
  if (there["family"] === undefined || there["family"] !== here["family"]) return null;
  return [...new Set([...Object.keys(here), ...Object.keys(there)])]
    .filter((name) => (here[name] ?? "").toLowerCase() !== (there[name] ?? "").toLowerCase())
    .map((name) => `${name}: ${there[name] || "unknown"} there, ${here[name] || "unknown"} here`);
}

/** By the names that facts have; what the user added keeps its prefix. */
function flatten(identity: SourceIdentity): Record<string, string> {
  const extra = Object.entries(identity.extraParameters).map(
    ([name, value]) => [name.replace(/^relight\./, ""), value] as const,
  );
  return {
    ...Object.fromEntries(extra),
    framework:
      Object.entries(frameworks).find(([, number]) => number === identity.backendFramework)?.[0] ??
      "",
    framework_version: identity.backendFrameworkVersion,
    model: identity.modelName,
    revision: identity.revision,
    torch: identity.torchVersion,
    cuda: identity.cudaVersion,
    triton: identity.tritonVersion,
    gpu_arch: identity.gpuArch,
    tp: String(identity.tensorParallelSize),
    pp: String(identity.pipelineParallelSize),
    ep: String(identity.expertParallelSize),
    dtype: identity.dtype,
    quantization: identity.quantization,
    compile_config: identity.compileConfigDigest,
  };
}
