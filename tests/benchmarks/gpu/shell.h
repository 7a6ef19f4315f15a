// SPDX-License-Identifier: Apache-2.0
// A command of the shell, its exit status and all that it says.
#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <string>

namespace rempart::benchmarks {

struct Ran {
  int status = -1;
  std::string output;
};

inline Ran RunShell(const std::string& command) {
  Ran ran;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return ran;
  char text[512];
  while (std::fgets(text, sizeof(text), pipe) != nullptr) ran.output += text;
  const int status = pclose(pipe);
  ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ran;
}

}  // namespace rempart::benchmarks
