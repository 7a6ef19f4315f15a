// SPDX-License-Identifier: Apache-2.0
// What a part of benchmarks/gpu/run has measured and found wrong, and the lines that it is kept and
// passed between processes as.
#pragma once

#include <string>
#include <vector>

namespace rempart::benchmarks {

struct Figure {
  std::string name;
  double value = 0;
  std::string unit;
};

struct PartResult {
  std::vector<Figure> figures;
  // Why figures are missing that this machine cannot have, and what it computes with.
  std::vector<std::string> notes;
  // What was computed and is wrong; empty: all is as it should be.
  std::vector<std::string> wrong;
};

void Append(const PartResult& more, PartResult& result);

// Lines of fields that tabs part.
std::string OneField(const std::string& text);
std::string ResultLines(const PartResult& result);
// False when the line is none of ResultLines.
bool TakeResultLine(const std::string& line, PartResult& result);

}  // namespace rempart::benchmarks
