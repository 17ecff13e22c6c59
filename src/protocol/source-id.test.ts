// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { BackendFramework, MxSourceType, SourceIdentitySchema } from "./gen/p2p_pb.ts";
import { isSourceId, sourceIdOf } from "./source-id.ts";

const base = {
  mxVersion: "0.5.0",
  mxSourceType: MxSourceType.WEIGHTS,
  modelName: "deepseek-ai/DeepSeek-V3",
  backendFramework: BackendFramework.VLLM,
  tensorParallelSize: 8,
  pipelineParallelSize: 1,
  dtype: "bfloat16",
};

function idOf(fields: MessageInitShape<typeof SourceIdentitySchema> = {}): string {
  return sourceIdOf(create(SourceIdentitySchema, Object.assign({}, base, fields)));
}

test("sourceIdOf() gives the published vector of the plain identity", () => {
  assert.equal(idOf(), "5a5f555570065064");
});

test("sourceIdOf() gives the published vector with a revision", () => {
  assert.equal(idOf({ revision: "abc123def4567890" }), "d0c184b2a9a34c82");
});

test("sourceIdOf() gives the published vector when extra keys collide, whatever their order", () => {
  assert.equal(idOf({ extraParameters: { Foo: "a", foo: "b" } }), "bf71fb9340cd940a");
  assert.equal(idOf({ extraParameters: { foo: "b", Foo: "a" } }), "bf71fb9340cd940a");
});

test("sourceIdOf() ignores case and tells every field apart", () => {
  assert.equal(idOf({ modelName: "DEEPSEEK-AI/deepseek-v3", dtype: "BFloat16" }), idOf());
  const others: MessageInitShape<typeof SourceIdentitySchema>[] = [
    { mxVersion: "0.5.1" },
    { mxSourceType: MxSourceType.LORA },
    { modelName: "other" },
    { backendFramework: BackendFramework.SGLANG },
    { tensorParallelSize: 4 },
    { pipelineParallelSize: 2 },
    { expertParallelSize: 1 },
    { dtype: "float16" },
    { quantization: "fp8" },
    { extraParameters: { a: "b" } },
    { revision: "r" },
    { backendFrameworkVersion: "1" },
    { torchVersion: "1" },
    { cudaVersion: "1" },
    { tritonVersion: "1" },
    { gpuArch: "sm90" },
    { compileConfigDigest: "1" },
  ];
  const ids = new Set([idOf(), ...others.map((fields) => idOf(fields))]);
  assert.equal(ids.size, others.length + 1);
});

test("isSourceId() accepts 16 lower-case hex characters only", () => {
  assert.equal(isSourceId(idOf()), true);
  for (const text of [
    "",
    "5A5F555570065064",
    "5a5f55557006506",
    "5a5f5555700650644",
    "../../../../etc/",
  ]) {
    assert.equal(isSourceId(text), false, text);
  }
});
