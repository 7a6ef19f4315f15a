# SPDX-License-Identifier: Apache-2.0
# The CUDA language, where REMPART_CUDA asks for it. The toolkit is what CUDACXX or
# CMAKE_CUDA_COMPILER names, or else what dev/deps/cuda finds or installs. Libraries beyond the
# static runtime (cuBLASLt, NCCL, NVML) are loaded at run time.
if(NOT REMPART_CUDA)
  return()
endif()
set(REMPART_CUDA_ARCHITECTURES "80;86;89;90a;100;120" CACHE STRING
    "Compute capabilities to compile for, without their dots")
if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/dev/deps/cuda OUTPUT_VARIABLE root
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(CMAKE_CUDA_COMPILER ${root}/bin/nvcc CACHE FILEPATH "nvcc")
endif()
# Machine code for each, no PTX: an unknown GPU is an error at start, not a minute of compiling.
set(CMAKE_CUDA_ARCHITECTURES ${REMPART_CUDA_ARCHITECTURES})
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND -real)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
# CMake 3.25 asks for a library that CUDA 13 no longer has.
add_library(CUDA::nvToolsExt INTERFACE IMPORTED GLOBAL)
enable_language(CUDA)
# Nor does it know that nvcc has C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
find_package(CUDAToolkit 12.8 REQUIRED)
if(CCACHE_PROGRAM)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
# Warnings are errors here too. nvcc's generated host code breaks -Wpedantic alone.
set(REMPART_CUDA_FLAGS --expt-relaxed-constexpr -Werror=all-warnings
    -Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-Werror)
