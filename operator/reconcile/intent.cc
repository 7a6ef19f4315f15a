// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/intent.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/message_differencer.h>

#include <map>
#include <vector>

#include "absl/strings/str_format.h"
#include "operator/plan/quantity.h"

namespace rempart::op {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string TextOf(const Message& message, const FieldDescriptor* field) {
  return message.GetReflection()->GetString(message, field);
}

bool IsQuantity(const FieldDescriptor* map) {
  return map->containing_type()->name() == "ResourceRequirements";
}

bool MeansTheSame(const std::string& a, const std::string& b, bool quantity) {
  if (a == b) return true;
  const auto x = ParseMilli(a);
  return quantity && x.has_value() && x == ParseMilli(b);
}

// Maps of the objects that we apply are from text to text.
std::map<std::string, std::string> EntriesOf(const Message& message, const FieldDescriptor* map) {
  std::map<std::string, std::string> entries;
  const Reflection* reflection = message.GetReflection();
  for (int i = 0; i < reflection->FieldSize(message, map); ++i) {
    const Message& entry = reflection->GetRepeatedMessage(message, map, i);
    entries[TextOf(entry, map->message_type()->map_key())] =
        TextOf(entry, map->message_type()->map_value());
  }
  return entries;
}

bool MapHolds(const Message& live, const Message& intent, const FieldDescriptor* map) {
  const std::map<std::string, std::string> there = EntriesOf(live, map);
  for (const auto& [key, value] : EntriesOf(intent, map)) {
    const auto found = there.find(key);
    if (found == there.end() || !MeansTheSame(found->second, value, IsQuantity(map))) return false;
  }
  return true;
}

bool FieldHolds(const Message& live, const Message& intent, const FieldDescriptor* field) {
  const Reflection* from = intent.GetReflection();
  const Reflection* to = live.GetReflection();
  if (field->is_map()) return MapHolds(live, intent, field);
  const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  if (!is_message) {
    // A false or a zero that is stated is not the same as nothing.
    if (field->has_presence() && !to->HasField(live, field)) return false;
    google::protobuf::util::MessageDifferencer differencer;
    return differencer.CompareWithFields(live, intent, {field}, {field});
  }
  if (!field->is_repeated()) {
    return to->HasField(live, field) &&
           HoldsIntent(to->GetMessage(live, field), from->GetMessage(intent, field));
  }
  if (to->FieldSize(live, field) != from->FieldSize(intent, field)) return false;
  for (int i = 0; i < from->FieldSize(intent, field); ++i) {
    if (!HoldsIntent(to->GetRepeatedMessage(live, field, i),
                     from->GetRepeatedMessage(intent, field, i))) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::string IntentDigest(const Message& intent) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    intent.SerializeToCodedStream(&coded);
  }
  // FNV-1a, 64 bits: to notice a change, not to withstand an attacker.
  uint64_t hash = 14695981039346656037u;
  for (const char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 1099511628211u;
  return absl::StrFormat("%016x", hash);
}

bool HoldsIntent(const Message& live, const Message& intent) {
  std::vector<const FieldDescriptor*> stated;
  intent.GetReflection()->ListFields(intent, &stated);
  for (const FieldDescriptor* field : stated) {
    if (!FieldHolds(live, intent, field)) return false;
  }
  return true;
}

}  // namespace rempart::op
