// SPDX-License-Identifier: Apache-2.0
// What a manifest asks that cannot be had: fields of the schema that this version does not act on
// yet are refused, never ignored.
#pragma once

#include <optional>
#include <string>

#include "operator/plan/observed.h"
#include "operator/plan/plan.h"

namespace rempart::op {

// Why a Model is not accepted: reason of the condition, and what to do.
struct Refusal {
  std::string reason;
  std::string message;
};

std::optional<Refusal> ParseSource(const Settings& settings,
                                   const serving::v1alpha1::ModelSpec& spec, ParsedSource& source);

std::optional<Refusal> Validate(const Observed& observed, ParsedSource& source);

}  // namespace rempart::op
