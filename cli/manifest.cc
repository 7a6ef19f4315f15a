// SPDX-License-Identifier: Apache-2.0
#include "cli/manifest.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "proto/crd/options.pb.h"

namespace rempart::cli {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr char kApiVersion[] = "serving.rempart.dev/v1alpha1";
constexpr size_t kMaxManifestBytes = 1 << 20;

absl::Status Problem(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

std::string Join(const std::string& path, absl::string_view name) {
  return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
}

std::string FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->json_name());
  return absl::StrJoin(names, ", ");
}

absl::Status CheckText(const std::string& path, const crd::Field& rules, const std::string& text) {
  const auto& values = rules.enum_values();
  if (!values.empty() && std::find(values.begin(), values.end(), text) == values.end()) {
    return Problem(path,
                   absl::StrCat("\"", text, "\" must be one of ", absl::StrJoin(values, ", ")));
  }
  if (rules.has_max_length() && text.size() > static_cast<size_t>(rules.max_length())) {
    return Problem(path, absl::StrCat("has more than ", rules.max_length(), " characters"));
  }
  if (rules.has_pattern() && !std::regex_match(text, std::regex(rules.pattern()))) {
    return Problem(path, absl::StrCat("\"", text, "\" must match ", rules.pattern()));
  }
  return absl::OkStatus();
}

class Reader {
 public:
  absl::Status ReadObject(const YAML::Node& node, const std::string& path, Message& message) {
    if (!node.IsMap()) return Problem(path.empty() ? "the manifest" : path, "must be a mapping");
    const Descriptor& type = *message.GetDescriptor();
    for (const auto& entry : node) {
      const std::string name = entry.first.Scalar();
      const FieldDescriptor* field = FindField(type, name);
      if (field == nullptr) {
        return Problem(Join(path, name),
                       absl::StrCat("no such field; there are ", FieldNames(type)));
      }
      if (entry.second.IsNull()) continue;
      RETURN_IF_ERROR(ReadField(entry.second, Join(path, name), *field, message));
    }
    return CheckRequired(path, message);
  }

 private:
  static const FieldDescriptor* FindField(const Descriptor& type, const std::string& name) {
    for (int i = 0; i < type.field_count(); ++i) {
      if (type.field(i)->json_name() == name) return type.field(i);
    }
    return nullptr;
  }

  static absl::Status CheckRequired(const std::string& path, const Message& message) {
    const Descriptor& type = *message.GetDescriptor();
    for (int i = 0; i < type.field_count(); ++i) {
      const FieldDescriptor* field = type.field(i);
      const crd::Field& rules = field->options().GetExtension(crd::field);
      if (!rules.required() || field->is_repeated()) continue;
      if (message.GetReflection()->HasField(message, field)) continue;
      return Problem(Join(path, field->json_name()), "is required");
    }
    return absl::OkStatus();
  }

  absl::Status ReadField(const YAML::Node& node, const std::string& path,
                         const FieldDescriptor& field, Message& message) {
    if (field.is_map()) return ReadMap(node, path, field, message);
    if (!field.is_repeated()) return ReadValue(node, path, field, message);
    if (!node.IsSequence()) return Problem(path, "must be a list");
    const crd::Field& rules = field.options().GetExtension(crd::field);
    if (rules.has_max_items() && node.size() > static_cast<size_t>(rules.max_items())) {
      return Problem(path, absl::StrCat("has more than ", rules.max_items(), " items"));
    }
    for (size_t i = 0; i < node.size(); ++i) {
      RETURN_IF_ERROR(ReadValue(node[i], absl::StrCat(path, "[", i, "]"), field, message));
    }
    return absl::OkStatus();
  }

  // Maps of the schema are of text to text.
  static absl::Status ReadMap(const YAML::Node& node, const std::string& path,
                              const FieldDescriptor& field, Message& message) {
    if (!node.IsMap()) return Problem(path, "must be a mapping");
    for (const auto& entry : node) {
      if (!entry.second.IsScalar())
        return Problem(Join(path, entry.first.Scalar()), "must be text");
      Message* item = message.GetReflection()->AddMessage(&message, &field);
      item->GetReflection()->SetString(item, item->GetDescriptor()->field(0), entry.first.Scalar());
      item->GetReflection()->SetString(item, item->GetDescriptor()->field(1),
                                       entry.second.Scalar());
    }
    return absl::OkStatus();
  }

  absl::Status ReadValue(const YAML::Node& node, const std::string& path,
                         const FieldDescriptor& field, Message& message) {
    const auto* reflection = message.GetReflection();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      Message* inner = field.is_repeated() ? reflection->AddMessage(&message, &field)
                                           : reflection->MutableMessage(&message, &field);
      return ReadObject(node, path, *inner);
    }
    if (!node.IsScalar()) return Problem(path, "must be a single value");
    const crd::Field& rules = field.options().GetExtension(crd::field);
    const std::string& text = node.Scalar();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      RETURN_IF_ERROR(CheckText(path, rules, text));
      field.is_repeated() ? reflection->AddString(&message, &field, text)
                          : reflection->SetString(&message, &field, text);
      return absl::OkStatus();
    }
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
      if (text != "true" && text != "false") return Problem(path, "must be true or false");
      reflection->SetBool(&message, &field, text == "true");
      return absl::OkStatus();
    }
    int32_t number = 0;
    if (node.Tag() == "!" || !absl::SimpleAtoi(text, &number)) {
      return Problem(path, absl::StrCat("\"", text, "\" must be a whole number"));
    }
    if ((rules.has_minimum() && number < rules.minimum()) ||
        (rules.has_maximum() && number > rules.maximum())) {
      return Problem(
          path, absl::StrCat(number, " must be from ", rules.minimum(), " to ", rules.maximum()));
    }
    reflection->SetInt32(&message, &field, number);
    return absl::OkStatus();
  }
};

absl::StatusOr<op::Model> ReadModel(const YAML::Node& document) {
  op::Model model;
  RETURN_IF_ERROR(Reader().ReadObject(document, "", model));
  if (model.api_version() != kApiVersion) {
    return Problem("apiVersion",
                   absl::StrCat("\"", model.api_version(), "\" must be ", kApiVersion));
  }
  if (model.kind() != "Model") {
    return Problem("kind", absl::StrCat("\"", model.kind(), "\" must be Model"));
  }
  static const std::regex kName("[a-z0-9]([-a-z0-9]*[a-z0-9])?");
  if (!std::regex_match(model.metadata().name(), kName)) {
    return Problem("metadata.name", absl::StrCat("\"", model.metadata().name(),
                                                 "\" must be lower-case letters, digits and -"));
  }
  if (model.metadata().namespace_().empty()) {
    model.mutable_metadata()->set_namespace_("default");
  }
  return model;
}

}  // namespace

absl::StatusOr<std::vector<op::Model>> ParseManifests(const std::string& yaml) {
  if (yaml.size() > kMaxManifestBytes) {
    return absl::InvalidArgumentError("the manifest is larger than 1 MiB");
  }
  std::vector<op::Model> models;
  // yaml-cpp throws; its exceptions end here.
  try {
    for (const YAML::Node& document : YAML::LoadAll(yaml)) {
      if (document.IsNull()) continue;
      ASSIGN_OR_RETURN(op::Model model, ReadModel(document));
      models.push_back(std::move(model));
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not YAML: ", error.what()));
  }
  if (models.empty()) return absl::InvalidArgumentError("there is no Model in it");
  return models;
}

absl::StatusOr<std::vector<op::Model>> ReadManifests(const std::string& path) {
  std::ostringstream content;
  if (path == "-") {
    content << std::cin.rdbuf();
  } else {
    std::ifstream file(path, std::ios::binary);
    if (!file) return absl::NotFoundError(absl::StrCat("-f ", path, ": ", std::strerror(errno)));
    content << file.rdbuf();
  }
  auto models = ParseManifests(content.str());
  if (models.ok()) return models;
  return absl::Status(models.status().code(), absl::StrCat(path, ": ", models.status().message()));
}

absl::StatusOr<std::vector<op::Plan>> PlanLocally(const std::vector<op::Model>& models) {
  std::vector<op::Plan> plans;
  for (size_t i = 0; i < models.size(); ++i) {
    op::Observed observed;
    observed.model = models[i];
    observed.settings.local = true;
    // Earlier documents are the older ones.
    for (size_t j = 0; j < i; ++j) {
      if (op::FullName(models[j]) == op::FullName(models[i])) {
        return absl::InvalidArgumentError(
            absl::StrCat("Model ", op::FullName(models[i]), " is there twice"));
      }
      observed.others.push_back({op::FullName(models[j]), op::ServedNames(models[j]), ""});
    }
    observed.model.mutable_metadata()->set_creation_timestamp("later");
    op::Plan plan = op::MakePlan(observed);
    for (const auto& condition : plan.status.conditions()) {
      if (condition.type() == "Accepted" && condition.status() == "False") {
        return absl::InvalidArgumentError(
            absl::StrCat("Model ", op::FullName(models[i]), ": ", condition.message()));
      }
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

std::string ProcessesInWords(const op::GroupPlan& group) {
  const bool is_one = group.pod_count <= 1;
  const std::string processes = is_one ? "one rempart-worker process"
                                       : absl::StrCat(group.pod_count, " rempart-worker processes");
  if (group.ranks_per_pod <= 1) return processes;
  return absl::StrCat(processes, " of ", group.ranks_per_pod, " ranks", is_one ? "" : " each");
}

}  // namespace rempart::cli
