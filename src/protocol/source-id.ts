// SPDX-License-Identifier: Apache-2.0
// The mx_source_id: 16 hex characters that two workers share exactly when they may exchange. The form
// is ModelExpress's, so that both kinds of client meet under one id. Non-ASCII names: ModelExpress's
// own two implementations differ there; this is the UTF-8 one (docs/protocol.md).

import { createHash } from "node:crypto";
import { canonicalJson, type Json } from "../core/canonical-json.ts";
import type { SourceIdentity } from "./gen/p2p_pb.ts";

/** The identity's fields without the message's own, so that a plain object will do. */
export type IdentityFields = Omit<SourceIdentity, "$typeName" | "$unknown">;

export type SourceId = string & { readonly __brand: "SourceId" };

const form = /^[0-9a-f]{16}$/;

export function isSourceId(text: string): text is SourceId {
  return form.test(text);
}

export function sourceIdOf(identity: IdentityFields): SourceId {
  const digest = createHash("sha256").update(canonicalJson(canonicalFields(identity)), "utf8");
  return digest.digest("hex").slice(0, 16) as SourceId;
}

function canonicalFields(identity: IdentityFields): { readonly [key: string]: Json } {
  return {
    mx_version: identity.mxVersion.toLowerCase(),
    mx_source_type: identity.mxSourceType,
    model_name: identity.modelName.toLowerCase(),
    backend_framework: identity.backendFramework,
    tensor_parallel_size: identity.tensorParallelSize,
    pipeline_parallel_size: identity.pipelineParallelSize,
    expert_parallel_size: identity.expertParallelSize,
    dtype: identity.dtype.toLowerCase(),
    quantization: identity.quantization.toLowerCase(),
    extra_parameters: lowerCased(identity.extraParameters),
    revision: identity.revision.toLowerCase(),
    ...nonEmpty({
      backend_framework_version: identity.backendFrameworkVersion,
      torch_version: identity.torchVersion,
      cuda_version: identity.cudaVersion,
      triton_version: identity.tritonVersion,
      gpu_arch: identity.gpuArch,
      compile_config_digest: identity.compileConfigDigest,
    }),
  };
}

/** Sorted by the original key, then lower-cased; of two keys that collide the first wins. */
function lowerCased(parameters: Readonly<Record<string, string>>): Record<string, string> {
  const result = new Map<string, string>();
  for (const key of Object.keys(parameters).sort()) {
    const lower = key.toLowerCase();
    if (!result.has(lower)) result.set(lower, (parameters[key] ?? "").toLowerCase());
  }
  return Object.fromEntries(result);
}

function nonEmpty(fields: Readonly<Record<string, string>>): Record<string, string> {
  const kept = Object.entries(fields).filter(([, value]) => value !== "");
  return Object.fromEntries(kept.map(([key, value]) => [key, value.toLowerCase()]));
}
