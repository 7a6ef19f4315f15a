// SPDX-License-Identifier: Apache-2.0
// The tables that dispatch.cc chooses from. Those of x86 exist in builds for x86-64 alone.
#pragma once

#include "kernels/ops.h"

namespace rempart::kernels {

const Ops& BaselineOps();
const Ops& Avx2Ops();
const Ops& AvxVnniOps();
const Ops& Avx512Ops();
const Ops& Avx512VnniOps();
const Ops& Avx512Bf16Ops();
const Ops& AmxOps();
const Ops& AmxBf16Ops();

const Ops& Avx2TwinOps();
const Ops& AvxVnniTwinOps();
const Ops& Avx512TwinOps();
const Ops& Avx512VnniTwinOps();
const Ops& Avx512Bf16TwinOps();
const Ops& AmxTwinOps();
const Ops& AmxBf16TwinOps();

}  // namespace rempart::kernels
