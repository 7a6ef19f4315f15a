// SPDX-License-Identifier: Apache-2.0
#include "worker/model/file_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "worker/model/mapped_file.h"
#include "worker/model/packed_memory.h"

namespace rempart::worker {
namespace {

constexpr int kExitCode = 3;
constexpr size_t kBytes = 64 << 10;

class FilePagesDeathTest : public testing::Test {
 protected:
  FilePagesDeathTest() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    std::filesystem::create_directories(folder_);
  }
  ~FilePagesDeathTest() override { std::filesystem::remove_all(folder_); }

  MappedFile Map(const std::string& name) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary) << std::string(kBytes, 'x');
    auto file = MappedFile::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }

  const std::string folder_ = testing::TempDir() + "/file_pages_" + std::to_string(getpid());
};

int Touch(const MappedFile& file) {
  return *static_cast<const volatile uint8_t*>(file.bytes().data() + kBytes - 1);
}

TEST_F(FilePagesDeathTest, NamesTheFileThatWasCut) {
  EXPECT_EXIT(
      {
        EndOnUnreadablePages(kExitCode);
        const MappedFile other = Map("other.gguf");
        MappedFile first = Map("a\nmodel.gguf");
        const MappedFile file = std::move(first);
        std::filesystem::resize_file(file.path(), 100);
        std::exit(Touch(file));
      },
      testing::ExitedWithCode(kExitCode),
      "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z ERROR worker: "
      "[^\n]*/a\\\\nmodel.gguf: cannot be read any more where it is mapped: the file was "
      "cut[^\n]*\n$");
}

TEST_F(FilePagesDeathTest, LeavesOtherFaultsAsTheyWere) {
  EXPECT_EXIT(
      {
        EndOnUnreadablePages(kExitCode);
        { const MappedFile unmapped = Map("unmapped.gguf"); }
        const MappedFile file = Map("model.gguf");
        raise(SIGBUS);  // of no address of the file
        std::exit(0);
      },
      testing::KilledBySignal(SIGBUS), "^$");
}

TEST_F(FilePagesDeathTest, ServesOnWhenTheNameIsTakenByAnotherFile) {
  EXPECT_EXIT(
      {
        EndOnUnreadablePages(kExitCode);
        const MappedFile file = Map("model.gguf");
        std::ofstream(folder_ + "/new") << "short";
        std::filesystem::rename(folder_ + "/new", file.path());
        std::exit(Touch(file) == 'x' ? 0 : 1);
      },
      testing::ExitedWithCode(0), "^$");
}

// More mappings than can be named: they are mapped and read all the same.
TEST_F(FilePagesDeathTest, ManyMappings) {
  const MappedFile file = Map("many.gguf");
  std::vector<PackedMemory> mappings;
  for (int i = 0; i < 1100; ++i) {
    auto mapping = PackedMemory::MapFile(file.descriptor(), file.path(), 0, kBytes);
    ASSERT_TRUE(mapping.ok()) << mapping.status();
    mappings.push_back(*std::move(mapping));
  }
  for (const PackedMemory& mapping : mappings) EXPECT_EQ(mapping.bytes().back(), 'x');
}

}  // namespace
}  // namespace rempart::worker
