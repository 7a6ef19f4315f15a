// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/result.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace rempart::benchmarks {

void Append(const PartResult& more, PartResult& result) {
  result.figures.insert(result.figures.end(), more.figures.begin(), more.figures.end());
  result.notes.insert(result.notes.end(), more.notes.begin(), more.notes.end());
  result.wrong.insert(result.wrong.end(), more.wrong.begin(), more.wrong.end());
}

std::string OneField(const std::string& text) {
  return absl::StrReplaceAll(text, {{"\t", " "}, {"\n", " "}, {"\r", " "}});
}

std::string ResultLines(const PartResult& result) {
  std::string text;
  for (const Figure& figure : result.figures) {
    absl::StrAppend(&text, "figure\t", OneField(figure.name), "\t",
                    absl::StrFormat("%.9g", figure.value), "\t", OneField(figure.unit), "\n");
  }
  for (const std::string& note : result.notes) {
    absl::StrAppend(&text, "note\t", OneField(note), "\n");
  }
  for (const std::string& wrong : result.wrong) {
    absl::StrAppend(&text, "wrong\t", OneField(wrong), "\n");
  }
  return text;
}

bool TakeResultLine(const std::string& line, PartResult& result) {
  const std::vector<std::string> fields = absl::StrSplit(line, '\t');
  double value = 0;
  if (fields[0] == "figure" && fields.size() == 4 && absl::SimpleAtod(fields[2], &value)) {
    result.figures.push_back({fields[1], value, fields[3]});
  } else if (fields[0] == "note" && fields.size() == 2) {
    result.notes.push_back(fields[1]);
  } else if (fields[0] == "wrong" && fields.size() == 2) {
    result.wrong.push_back(fields[1]);
  } else {
    return false;
  }
  return true;
}

}  // namespace rempart::benchmarks
