# SPDX-License-Identifier: Apache-2.0
# One function per kind of target: library, binary, proto, test. Every target is compiled with the
# same warnings, and includes are relative to the repository root.

add_library(rempart_flags INTERFACE)
target_include_directories(rempart_flags INTERFACE ${CMAKE_SOURCE_DIR})
# nvcc has flags of its own (cmake/cuda.cmake).
target_compile_options(rempart_flags INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Werror;-fno-omit-frame-pointer;-pthread>)
# The Debian abseil headers predate GCC 12's dangling and array-bounds analyses, which misfire there;
# its restrict analysis misfires on std::string (GCC bug 105651).
target_compile_options(rempart_flags INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized;-Wno-restrict;-Wno-array-bounds;-Wno-stringop-overflow>
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wthread-safety>)
# With -O3 another of them misfires on std::string.
target_compile_options(rempart_flags INTERFACE
  $<$<AND:$<CONFIG:Release>,$<COMPILE_LANG_AND_ID:CXX,GNU>>:-Wno-stringop-overread>)
if(REMPART_SANITIZE)
  target_compile_options(rempart_flags INTERFACE -fsanitize=${REMPART_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(rempart_flags INTERFACE -fsanitize=${REMPART_SANITIZE})
  if(REMPART_SANITIZE STREQUAL thread)
    set(script -Wl,--version-script=${CMAKE_SOURCE_DIR}/tests/sanitize/local_symbols.map)
    target_link_options(rempart_flags INTERFACE
                        $<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:${script}>)
  endif()
  if(REMPART_SANITIZE STREQUAL thread AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # Boost.Asio has fences, which GCC's thread sanitizer does not model; what they order is locked too.
    target_compile_options(rempart_flags INTERFACE -Wno-tsan)
    # Protobuf's headers add members under the sanitizer that the library, compiled without, has not.
    target_compile_options(rempart_flags INTERFACE -U__SANITIZE_THREAD__)
  endif()
endif()

# rempart_library(NAME name SRCS ... DEPS ... [OWN_FLAGS]): a static library; header-only when SRCS is empty. OWN_FLAGS: its
# files have code generation flags of their own, so no precompiled header fits them.
function(rempart_library)
  cmake_parse_arguments(arg "OWN_FLAGS" "NAME" "SRCS;DEPS" ${ARGN})
  if(arg_SRCS)
    add_library(${arg_NAME} STATIC ${arg_SRCS})
    target_link_libraries(${arg_NAME} PUBLIC rempart_flags ${arg_DEPS})
    if(NOT arg_OWN_FLAGS)
      precompile(${arg_NAME} library)
    endif()
  else()
    add_library(${arg_NAME} INTERFACE)
    target_link_libraries(${arg_NAME} INTERFACE rempart_flags ${arg_DEPS})
  endif()
endfunction()

# rempart_binary(NAME name SRCS ... DEPS ...): an executable, put in build/<preset>/bin.
function(rempart_binary)
  cmake_parse_arguments(arg "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${arg_NAME} ${arg_SRCS})
  target_link_libraries(${arg_NAME} PRIVATE rempart_flags ${arg_DEPS})
  set_target_properties(${arg_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()

# rempart_proto(NAME name SRCS a.proto ... [GRPC]): C++ of protobuf files; includes are root-relative
# ("proto/worker/v1/worker.pb.h").
function(rempart_proto)
  cmake_parse_arguments(arg "GRPC" "NAME" "SRCS;DEPS" ${ARGN})
  set(out ${CMAKE_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  set(generated)
  foreach(src ${arg_SRCS})
    cmake_path(ABSOLUTE_PATH src BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} NORMALIZE OUTPUT_VARIABLE abs)
    cmake_path(RELATIVE_PATH abs BASE_DIRECTORY ${CMAKE_SOURCE_DIR} OUTPUT_VARIABLE rel)
    string(REGEX REPLACE "\\.proto$" "" stem ${rel})
    set(files ${out}/${stem}.pb.cc ${out}/${stem}.pb.h)
    set(args --proto_path=${CMAKE_SOURCE_DIR} --cpp_out=${out} ${rel})
    if(arg_GRPC)
      list(APPEND files ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
      list(PREPEND args --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN} --grpc_out=${out})
    endif()
    add_custom_command(OUTPUT ${files} COMMAND protobuf::protoc ${args} DEPENDS ${abs}
                       WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} COMMENT "protoc ${rel}")
    list(APPEND generated ${files})
  endforeach()
  add_library(${arg_NAME} STATIC ${generated})
  target_include_directories(${arg_NAME} SYSTEM PUBLIC ${out})
  target_link_libraries(${arg_NAME} PUBLIC protobuf::libprotobuf ${arg_DEPS})
  if(REMPART_SANITIZE)
    target_compile_options(${arg_NAME} PRIVATE -fsanitize=${REMPART_SANITIZE} -U__SANITIZE_THREAD__)
  endif()
  if(arg_GRPC)
    target_link_libraries(${arg_NAME} PUBLIC gRPC::grpc++)
  endif()
endfunction()

# rempart_test(NAME name SRCS ... DEPS ... [LABEL unit|component|simulation]): a GoogleTest binary,
# one ctest case per test. Tests run in the source root, so that they can open tests/goldens/...
function(rempart_test)
  cmake_parse_arguments(arg "" "NAME;LABEL;TIMEOUT" "SRCS;DEPS" ${ARGN})
  if(NOT REMPART_TESTS)
    return()
  endif()
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  if(REMPART_SANITIZE)
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 5")  # they run several times slower
  endif()
  add_executable(${arg_NAME} ${arg_SRCS})
  target_link_libraries(${arg_NAME} PRIVATE rempart_flags ${arg_DEPS} GTest::gmock GTest::gtest_main)
  set_target_properties(${arg_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  precompile(${arg_NAME} test)
  if(NOT TARGET compiled_tests)
    add_custom_target(compiled_tests)
  endif()
  add_dependencies(compiled_tests ${arg_NAME})
  add_test(NAME ${arg_NAME} COMMAND ${arg_NAME} --gtest_brief=0 WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${arg_NAME} PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT})
endfunction()

# rempart_fuzzer(NAME name SRCS ... DEPS ...): a libFuzzer target in build/<preset>/fuzz.
function(rempart_fuzzer)
  cmake_parse_arguments(arg "" "NAME" "SRCS;DEPS" ${ARGN})
  if(NOT REMPART_FUZZ)
    return()
  endif()
  add_executable(${arg_NAME} ${arg_SRCS})
  target_link_libraries(${arg_NAME} PRIVATE rempart_flags ${arg_DEPS})
  target_link_options(${arg_NAME} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${arg_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()
