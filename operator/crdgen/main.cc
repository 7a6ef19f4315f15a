// SPDX-License-Identifier: Apache-2.0
// rempart-crdgen DESCRIPTORS MESSAGE OUTPUT
#include <fstream>
#include <iostream>
#include <sstream>

#include "operator/crdgen/crdgen.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: rempart-crdgen DESCRIPTORS MESSAGE OUTPUT\n";
    return 2;
  }
  std::ifstream input(argv[1], std::ios::binary);
  if (!input) {
    std::cerr << "rempart-crdgen: cannot read " << argv[1] << "\n";
    return 1;
  }
  std::stringstream descriptors;
  descriptors << input.rdbuf();
  const absl::StatusOr<std::string> crd = rempart::op::GenerateCrd(descriptors.str(), argv[2]);
  if (!crd.ok()) {
    std::cerr << "rempart-crdgen: " << crd.status().message() << "\n";
    return 1;
  }
  std::ofstream output(argv[3], std::ios::binary);
  output << *crd;
  output.flush();
  if (!output) {
    std::cerr << "rempart-crdgen: cannot write " << argv[3] << "\n";
    return 1;
  }
  return 0;
}
