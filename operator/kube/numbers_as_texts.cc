// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/numbers_as_texts.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_format.h"
#include "proto/crd/options.pb.h"

namespace rempart::op {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Struct;
using google::protobuf::Value;

bool IsIntOrString(const FieldDescriptor* field) {
  return field->is_map() && field->options().GetExtension(crd::field).int_or_string();
}

// The messages of a CRD do not contain themselves, and lists of theirs have no such map.
bool HasIntOrString(const Descriptor* message) {
  for (int i = 0; i < message->field_count(); ++i) {
    const FieldDescriptor* field = message->field(i);
    if (IsIntOrString(field)) return true;
    if (!field->is_repeated() && field->message_type() != nullptr &&
        HasIntOrString(field->message_type())) {
      return true;
    }
  }
  return false;
}

// Whether anything was changed.
bool Rewrite(const Descriptor* message, Struct& object) {
  bool changed = false;
  for (int i = 0; i < message->field_count(); ++i) {
    const FieldDescriptor* field = message->field(i);
    if (field->message_type() == nullptr || (field->is_repeated() && !IsIntOrString(field)))
      continue;
    const auto found = object.mutable_fields()->find(std::string(field->json_name()));
    if (found == object.mutable_fields()->end() || !found->second.has_struct_value()) continue;
    Struct& value = *found->second.mutable_struct_value();
    if (!IsIntOrString(field)) {
      changed = Rewrite(field->message_type(), value) || changed;
      continue;
    }
    for (auto& entry : *value.mutable_fields()) {
      if (entry.second.kind_case() != Value::kNumberValue) continue;
      entry.second.set_string_value(absl::StrFormat("%.0f", entry.second.number_value()));
      changed = true;
    }
  }
  return changed;
}

}  // namespace

std::string NumbersAsTexts(const Descriptor* message, absl::string_view json) {
  std::string text(json);
  Struct object;
  if (!HasIntOrString(message) ||
      !google::protobuf::util::JsonStringToMessage(text, &object).ok() ||
      !Rewrite(message, object)) {
    return text;
  }
  std::string rewritten;
  // Fails only for numbers that are not finite, which JSON has not.
  (void)google::protobuf::util::MessageToJsonString(object, &rewritten);
  return rewritten;
}

}  // namespace rempart::op
