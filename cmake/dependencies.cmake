# SPDX-License-Identifier: Apache-2.0
# Everything from Debian 12 packages; dev/deps/install lists them.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(OpenSSL REQUIRED)
if(REMPART_SERVICES)
  find_package(Protobuf REQUIRED)
  find_package(gRPC CONFIG REQUIRED)
  find_package(CURL REQUIRED)
  find_package(simdjson REQUIRED)
  find_package(yaml-cpp REQUIRED)
  find_package(prometheus-cpp CONFIG REQUIRED)
  find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
  # Boost 1.81 is header-only for Beast and Asio.
  find_package(Boost 1.81 REQUIRED)
endif()
if(REMPART_TESTS)
  find_package(GTest REQUIRED)
endif()
