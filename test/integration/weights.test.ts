// SPDX-License-Identifier: Apache-2.0
// The weights contract on the fake GPU: real processes, real sockets, real kills, memory in files.

import { weightsContract } from "../contracts/weights.ts";

weightsContract({ backend: "fake", skip: false, deviceCount: 2 });
