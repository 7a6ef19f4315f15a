// SPDX-License-Identifier: Apache-2.0
// Generates a CustomResourceDefinition (apiextensions.k8s.io/v1, YAML) from a protobuf message: its
// comments become descriptions, its options (proto/crd/options.proto) bounds, defaults, CEL rules,
// printer columns and subresources.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rempart::op {

// `descriptor_set`: a serialized FileDescriptorSet with imports and source info. InvalidArgument
// when it does not parse, NotFound when `message` ("package.Name") is not in it or is no resource.
absl::StatusOr<std::string> GenerateCrd(absl::string_view descriptor_set,
                                        const std::string& message);

}  // namespace rempart::op
