// SPDX-License-Identifier: Apache-2.0
// A folder that nobody else can have written to, and what is said of one that is not.
#include "common/own_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace rempart {
namespace {

namespace fs = std::filesystem;

class OwnFolder : public testing::Test {
 protected:
  OwnFolder() { fs::create_directories(root_); }
  ~OwnFolder() override { fs::remove_all(root_); }
  // Of the state of the world after it.
  std::string Refusal(const std::string& folder) {
    const absl::Status status = MakeWritableFolder("the cellar", folder);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return std::string(status.message());
  }

  const std::string root_ = absl::StrCat("/tmp/rempart_own_folder_", getpid());
};

TEST_F(OwnFolder, IsMadeWithThoseAboveItAndLeftAsItWas) {
  const std::string folder = root_ + "/a/b/c";
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(MakeWritableFolder("the cellar", folder).ok());
    struct stat info = {};
    ASSERT_EQ(stat(folder.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);
    EXPECT_TRUE(fs::is_empty(folder));
  }
}

TEST_F(OwnFolder, OneThatCannotBeMadeIsNamedWithTheReason) {
  std::ofstream(root_ + "/file") << "x";
  EXPECT_EQ(Refusal(root_ + "/file/cellar"),
            absl::StrCat("the cellar ", root_, "/file/cellar cannot be made: Not a directory"));
  EXPECT_EQ(Refusal("/proc/cellar"),
            "the cellar /proc/cellar cannot be made: No such file or directory");
}

TEST_F(OwnFolder, AFileOrAFolderOfOthersIsRefusedWithTheFix) {
  std::ofstream(root_ + "/file") << "x";
  EXPECT_EQ(Refusal(root_ + "/file"),
            absl::StrCat("the cellar ", root_,
                         "/file is not used: it must be a folder that belongs "
                         "to the user of this process (",
                         geteuid(), ") and that nobody else may write to (chmod 700)"));
  fs::create_directory(root_ + "/open");
  ASSERT_EQ(chmod((root_ + "/open").c_str(), 0770), 0);
  EXPECT_NE(Refusal(root_ + "/open").find("chmod 700"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(root_ + "/open"));
}

// As root every folder but such a one can be written to.
TEST_F(OwnFolder, OneInWhichNothingCanBeMadeIsRefused) {
  if (geteuid() == 0) {
    EXPECT_EQ(Refusal("/proc").rfind("the cellar /proc cannot be written to: ", 0), 0u);
  } else {
    fs::create_directory(root_ + "/shut");
    ASSERT_EQ(chmod((root_ + "/shut").c_str(), 0500), 0);
    EXPECT_EQ(Refusal(root_ + "/shut"),
              absl::StrCat("the cellar ", root_, "/shut cannot be written to: Permission denied"));
  }
}

}  // namespace
}  // namespace rempart
