// SPDX-License-Identifier: Apache-2.0
#include "operator/crdgen/crdgen.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/crd/options.pb.h"

namespace rempart::op {
namespace {

// YAML's own mark of a scalar that was quoted.
constexpr char kQuotedTag[] = "!";

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;

YAML::Node Schema(const Descriptor* message);

template <typename D>
std::string Comment(const D* descriptor) {
  google::protobuf::SourceLocation location;
  if (!descriptor->GetSourceLocation(&location)) return "";
  std::string text(location.leading_comments);
  if (text.empty()) text = location.trailing_comments;
  return std::string(absl::StripAsciiWhitespace(absl::StrReplaceAll(text, {{"\n ", " "}})));
}

template <typename Rules>
void AddRules(const Rules& rules, YAML::Node& node) {
  for (const crd::Rule& rule : rules) {
    YAML::Node item;
    item["rule"] = rule.rule();
    item["message"] = rule.message();
    if (rule.has_message_expression()) item["messageExpression"] = rule.message_expression();
    node["x-kubernetes-validations"].push_back(item);
  }
}

// A text that YAML would otherwise read as something else ("True").
YAML::Node Quoted(const std::string& text) {
  YAML::Node node(text);
  node.SetTag(kQuotedTag);
  return node;
}

void Write(const YAML::Node& node, YAML::Emitter& out) {
  if (node.IsMap() && node.size() > 0) {
    out << YAML::BeginMap;
    for (const auto& entry : node) {
      out << YAML::Key << entry.first << YAML::Value;
      Write(entry.second, out);
    }
    out << YAML::EndMap;
  } else if (node.IsSequence() && node.size() > 0) {
    out << YAML::BeginSeq;
    for (const auto& entry : node) Write(entry, out);
    out << YAML::EndSeq;
  } else if (node.IsScalar() && node.Tag() == kQuotedTag) {
    out << YAML::DoubleQuoted << node.Scalar();
  } else {
    out << node;
  }
}

// The schema of one value of a field: of an element, where the field is repeated.
YAML::Node ValueSchema(const FieldDescriptor* field) {
  YAML::Node node;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      node["type"] = "string";
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      node["type"] = "boolean";
      break;
    case FieldDescriptor::CPPTYPE_INT32:
      node["type"] = "integer";
      node["format"] = "int32";
      break;
    default:
      node = Schema(field->message_type());
  }
  const crd::Field& options = field->options().GetExtension(crd::field);
  if (options.has_minimum()) node["minimum"] = options.minimum();
  if (options.has_maximum()) node["maximum"] = options.maximum();
  if (options.has_min_length()) node["minLength"] = options.min_length();
  if (options.has_max_length()) node["maxLength"] = options.max_length();
  if (options.has_pattern()) node["pattern"] = options.pattern();
  for (const std::string& value : options.enum_values()) node["enum"].push_back(Quoted(value));
  return node;
}

// As the schemas of Kubernetes' own quantities; the mark stands in the place of a type.
YAML::Node IntOrString() {
  YAML::Node node;
  for (const char* type : {"integer", "string"}) {
    YAML::Node choice;
    choice["type"] = type;
    node["anyOf"].push_back(choice);
  }
  node["x-kubernetes-int-or-string"] = true;
  return node;
}

void AddListKind(const crd::Field& options, YAML::Node& node) {
  if (options.has_min_items()) node["minItems"] = options.min_items();
  if (options.has_max_items()) node["maxItems"] = options.max_items();
  if (options.list_map_keys_size() > 0) {
    node["x-kubernetes-list-type"] = "map";
    for (const std::string& key : options.list_map_keys()) {
      node["x-kubernetes-list-map-keys"].push_back(key);
    }
  } else {
    node["x-kubernetes-list-type"] = options.list_set() ? "set" : "atomic";
  }
}

YAML::Node FieldSchema(const FieldDescriptor* field) {
  const crd::Field& options = field->options().GetExtension(crd::field);
  YAML::Node node;
  if (field->is_map()) {
    node["type"] = "object";
    node["additionalProperties"] =
        options.int_or_string() ? IntOrString() : ValueSchema(field->message_type()->map_value());
  } else if (field->is_repeated()) {
    node["type"] = "array";
    node["items"] = ValueSchema(field);
    AddListKind(options, node);
  } else {
    node = ValueSchema(field);
  }
  const std::string comment = Comment(field);
  if (!comment.empty()) node["description"] = comment;
  if (options.has_default_json()) node["default"] = YAML::Load(options.default_json());
  if (options.preserve_unknown_fields()) node["x-kubernetes-preserve-unknown-fields"] = true;
  AddRules(options.rules(), node);
  return node;
}

YAML::Node Schema(const Descriptor* message) {
  YAML::Node node;
  node["type"] = "object";
  const std::string comment = Comment(message);
  if (!comment.empty()) node["description"] = comment;
  for (int i = 0; i < message->field_count(); ++i) {
    const FieldDescriptor* field = message->field(i);
    // The API server owns the schema of metadata.
    if (field->name() == "metadata") {
      node["properties"]["metadata"]["type"] = "object";
      continue;
    }
    node["properties"][field->json_name()] = FieldSchema(field);
    if (field->options().GetExtension(crd::field).required()) {
      node["required"].push_back(field->json_name());
    }
  }
  AddRules(message->options().GetExtension(crd::message).rules(), node);
  return node;
}

YAML::Node Names(const Descriptor* message, const crd::Kind& kind) {
  YAML::Node names;
  names["kind"] = message->name();
  names["listKind"] = message->name() + "List";
  names["plural"] = kind.plural();
  names["singular"] = kind.singular();
  for (const std::string& name : kind.short_names()) names["shortNames"].push_back(name);
  for (const std::string& name : kind.categories()) names["categories"].push_back(name);
  return names;
}

YAML::Node Version(const Descriptor* message, const crd::Kind& kind) {
  YAML::Node version;
  version["name"] = kind.version();
  version["served"] = true;
  version["storage"] = true;
  for (const crd::Column& column : kind.columns()) {
    YAML::Node item;
    item["name"] = column.name();
    item["type"] = column.type();
    item["jsonPath"] = column.json_path();
    if (column.has_description()) item["description"] = column.description();
    if (column.has_priority()) item["priority"] = column.priority();
    version["additionalPrinterColumns"].push_back(item);
  }
  version["subresources"]["status"] = YAML::Node(YAML::NodeType::Map);
  if (kind.has_scale_spec_path()) {
    YAML::Node scale;
    scale["specReplicasPath"] = kind.scale_spec_path();
    scale["statusReplicasPath"] = kind.scale_status_path();
    scale["labelSelectorPath"] = kind.scale_selector_path();
    version["subresources"]["scale"] = scale;
  }
  version["schema"]["openAPIV3Schema"] = Schema(message);
  return version;
}

}  // namespace

absl::StatusOr<std::string> GenerateCrd(absl::string_view descriptor_set,
                                        const std::string& message) {
  google::protobuf::FileDescriptorSet files;
  if (!files.ParseFromArray(descriptor_set.data(), static_cast<int>(descriptor_set.size()))) {
    return absl::InvalidArgumentError("not a FileDescriptorSet: make it with protoc");
  }
  DescriptorPool pool;
  for (const auto& file : files.file()) {
    if (pool.BuildFile(file) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(file.name(), " does not build"));
    }
  }
  const Descriptor* descriptor = pool.FindMessageTypeByName(message);
  if (descriptor == nullptr) return absl::NotFoundError(absl::StrCat("no message ", message));
  if (!descriptor->options().HasExtension(crd::kind)) {
    return absl::NotFoundError(absl::StrCat(message, " has no option (rempart.crd.kind)"));
  }
  const crd::Kind& kind = descriptor->options().GetExtension(crd::kind);
  YAML::Node root;
  root["apiVersion"] = "apiextensions.k8s.io/v1";
  root["kind"] = "CustomResourceDefinition";
  root["metadata"]["name"] = absl::StrCat(kind.plural(), ".", kind.group());
  root["spec"]["group"] = kind.group();
  root["spec"]["scope"] = "Namespaced";
  root["spec"]["names"] = Names(descriptor, kind);
  root["spec"]["versions"].push_back(Version(descriptor, kind));
  YAML::Emitter out;
  Write(root, out);
  return absl::StrCat(
      "# SPDX-License-Identifier: Apache-2.0\n"
      "# Generated from proto/serving/v1alpha1/model.proto: `cmake --build --preset dev --target "
      "crds`.\n",
      out.c_str(), "\n");
}

}  // namespace rempart::op
