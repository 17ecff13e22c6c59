// SPDX-License-Identifier: Apache-2.0
// All kernels in one module, so that the host loads one file. Built by kernels/build.ts.
#include "ep_control.cu"
#include "ep_dispatch.cu"
#include "ep_combine.cu"
#include "ep_select.cu"
#include "digest.cu"
