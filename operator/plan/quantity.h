// SPDX-License-Identifier: Apache-2.0
// Kubernetes quantities ("100m", "1.5Gi", "2e3") as whole numbers, and back into words.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "operator/plan/nodes.h"

namespace rempart::op {

// In thousandths, rounded up; none for what is no quantity.
std::optional<int64_t> ParseMilli(absl::string_view text);

// "cpu" in thousandths, others whole and rounded up; what is no quantity is left out.
Amounts ParseAmounts(const std::map<std::string, std::string>& quantities);
template <typename Map>
Amounts ParseAmountsOf(const Map& quantities) {
  return ParseAmounts(std::map<std::string, std::string>(quantities.begin(), quantities.end()));
}

void AddAmounts(const Amounts& from, Amounts& to);
void SubtractAmounts(const Amounts& from, Amounts& to);

// "1.5 CPU", "512 MiB of memory", "2 nvidia.com/gpu".
std::string AmountInWords(const std::string& resource, int64_t amount);
// "1 CPU and 2048 MiB of memory"; "nothing" when all are zero.
std::string AmountsInWords(const Amounts& amounts);

}  // namespace rempart::op
