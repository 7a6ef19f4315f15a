// SPDX-License-Identifier: Apache-2.0
// One group as it shall be, from a manifest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operator/plan/plan.h"
#include "operator/plan/validate.h"

namespace rempart::op {

// The groups 0 to `count` - 1 as `spec` says; none when the spec's source cannot be read any more.
std::vector<GroupPlan> MakeGroups(const Observed& observed,
                                  const serving::v1alpha1::ModelSpec& spec, int32_t count);

const GroupObservation* FindGroup(const Observed& observed, int32_t index);
std::string GroupName(const Model& model, int32_t index);

// Seconds since 1970; 0 for what is no RFC 3339 time.
int64_t SecondsOf(const std::string& timestamp);

}  // namespace rempart::op
