// SPDX-License-Identifier: Apache-2.0
// What two workers must share before one takes the other's weights, as the coordinator's SourceIdentity,
// and what keeps two of them apart, in words. Whoever has the same identity has the same tensors in the
// same layout; which values they hold is the content, which is no part of it.

import { create } from "@bufbuild/protobuf";
import type { Facts } from "../artifacts/family.ts";
import {
  MxSourceType,
  type SourceIdentity,
  SourceIdentitySchema,
  type TensorDescriptor,
  TensorDescriptorSchema,
} from "../protocol/gen/p2p_pb.ts";
import { coordinateKey } from "../weights/coordinate.ts";
import { layoutFingerprint, type WeightLayout } from "../weights/manifest.ts";
import { spanBytes } from "../weights/tensor.ts";
import { frameworkNumber } from "./identity-wire.ts";

const part = "relight.part";
const state = "relight.state";
const signature = "layout_signature";

/** @param facts what is known of the engine; kernels of another build may read the same bytes otherwise */
export function weightIdentity(layout: WeightLayout, facts: Facts): SourceIdentity {
  const { tensor, pipeline, expert } = layout.coordinate;
  return create(SourceIdentitySchema, {
    mxVersion: "relight.weights.v1",
    mxSourceType: MxSourceType.WEIGHTS,
    modelName: layout.model,
    revision: layout.revision,
    backendFramework: frameworkNumber(facts.framework),
    backendFrameworkVersion: facts.framework_version ?? "",
    tensorParallelSize: tensor.size,
    pipelineParallelSize: pipeline.size,
    expertParallelSize: expert.size,
    dtype: facts.dtype ?? "",
    quantization: facts.quantization ?? "",
    gpuArch: `sm_${layout.arch}`,
    extraParameters: {
      [part]: coordinateKey(layout.coordinate),
      [state]: layout.state,
      // ModelExpress lists it with each source.
      [signature]: layoutFingerprint(layout),
    },
  });
}

/** The tensors as ModelExpress describes them. Addresses mean nothing outside their process. */
export function describeTensors(layout: WeightLayout): TensorDescriptor[] {
  return layout.tensors.map((tensor) =>
    create(TensorDescriptorSchema, {
      name: tensor.name,
      size: BigInt(spanBytes(tensor)),
      dtype: tensor.dtype,
    }),
  );
}

/** The first thing that keeps the two apart, or `null`. */
export function identityDifference(have: SourceIdentity, want: SourceIdentity): string | null {
  const fields = [
    ["model", have.modelName, want.modelName],
    ["revision", have.revision, want.revision],
    ["part", have.extraParameters[part], want.extraParameters[part]],
    ["state", have.extraParameters[state], want.extraParameters[state]],
    ["GPU", have.gpuArch, want.gpuArch],
    ["dtype", have.dtype, want.dtype],
    ["quantisation", have.quantization, want.quantization],
    ["engine", frameworkText(have), frameworkText(want)],
    ["tensor layout", short(have), short(want)],
  ] as const;
  const different = fields.find(([, one, other]) => normal(one) !== normal(other));
  if (different === undefined) return null;
  const [name, one, other] = different;
  return `its ${name} is "${one ?? ""}", wanted "${other ?? ""}"`;
}

function frameworkText({ backendFramework, backendFrameworkVersion }: SourceIdentity): string {
  return `${backendFramework} ${backendFrameworkVersion}`;
}

function short({ extraParameters }: SourceIdentity): string {
  return (extraParameters[signature] ?? "").slice(0, 12);
}

/** As the coordinator compares. */
function normal(text: string | undefined): string {
  return (text ?? "").toLowerCase();
}
