// SPDX-License-Identifier: Apache-2.0
#include "worker/model/repack_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/own_folder.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr char kMagic[8] = {'R', 'M', 'P', 'R', 'E', 'P', 'K', '1'};
constexpr char kSuffix[] = ".repacked";
constexpr int64_t kHeaderBytes = 4096;
constexpr int64_t kSamples = 64;
constexpr int64_t kSampleBytes = 4096;
// Between two looks whether to stop.
constexpr size_t kChunk = size_t{1} << 20;
// A file of another process that has not been finished for so long never will be.
constexpr int64_t kAbandonedSeconds = 3600;

// The first bytes of a file, as they lie there.
struct Header {
  char magic[8];
  int64_t payload_bytes;
  Sha256 key;
  Sha256 source_digest;
  Sha256 payload_digest;
  Sha256 checksum;  // of all before it
};
static_assert(sizeof(Header) == 144 && sizeof(Header) <= kHeaderBytes);

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

Sha256 KeyHash(const RepackKey& key) {
  Sha256Hasher hasher;
  hasher.Add(kMagic, sizeof(kMagic));
  hasher.Add(key.source.data(), key.source.size());
  hasher.Add(key.layout.data(), key.layout.size());
  hasher.Add(&key.bytes, sizeof(key.bytes));
  hasher.Add(key.tier.data(), key.tier.size());
  return hasher.Finish();
}

Sha256 ChecksumOf(const Header& header) {
  return HashOf({reinterpret_cast<const uint8_t*>(&header), offsetof(Header, checksum)});
}

// Owned by this user, and writable by nobody else.
bool IsOurs(const struct stat& info) {
  return info.st_uid == geteuid() && (info.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

absl::Status IoError(const std::string& path, absl::string_view what) {
  const int error = errno;
  const std::string message = absl::StrCat(path, ": cannot ", what, ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

absl::Status Stopped() { return absl::CancelledError("stopping"); }

absl::Status WriteAll(int fd, const void* data, size_t size, const std::string& path,
                      const std::stop_token& stop) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (size_t done = 0; done < size;) {
    if (stop.stop_requested()) return Stopped();
    const ssize_t written = write(fd, bytes + done, std::min(size - done, kChunk));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return IoError(path, "write");
    done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::Status WriteFile(int fd, const Header& header, absl::Span<const uint8_t> payload,
                       const std::string& path, const std::stop_token& stop) {
  uint8_t page[kHeaderBytes] = {};
  std::memcpy(page, &header, sizeof(header));
  RETURN_IF_ERROR(WriteAll(fd, page, sizeof(page), path, stop));
  RETURN_IF_ERROR(WriteAll(fd, payload.data(), payload.size(), path, stop));
  if (fsync(fd) != 0) return IoError(path, "sync");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Sha256> SampleSource(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info = {};
  if (file.get() < 0 || fstat(file.get(), &info) != 0) return IoError(path, "read");
  Sha256Hasher hasher;
  const int64_t facts[] = {info.st_size, static_cast<int64_t>(info.st_ino), info.st_mtim.tv_sec,
                           info.st_mtim.tv_nsec};
  hasher.Add(facts, sizeof(facts));
  std::vector<uint8_t> sample(kSampleBytes);
  for (int64_t i = 0; i < kSamples; ++i) {
    // From the first page to the last.
    const int64_t offset = std::max<int64_t>(0, info.st_size - kSampleBytes) / (kSamples - 1) * i;
    const ssize_t count = pread(file.get(), sample.data(), sample.size(), offset);
    if (count < 0) return IoError(path, "read");
    hasher.Add(sample.data(), static_cast<size_t>(count));
  }
  return hasher.Finish();
}

absl::StatusOr<Sha256> HashPayload(absl::Span<const uint8_t> payload, std::stop_token stop) {
  Sha256Hasher hasher;
  for (; !payload.empty(); payload.remove_prefix(std::min(kChunk, payload.size()))) {
    if (stop.stop_requested()) return Stopped();
    hasher.Add(payload.data(), std::min(kChunk, payload.size()));
  }
  return hasher.Finish();
}

absl::StatusOr<RepackCache> RepackCache::Open(const std::string& folder) {
  RETURN_IF_ERROR(MakeOwnFolder("the repack cache", folder));
  return RepackCache(folder);
}

std::string RepackCache::PathOf(const RepackKey& key) const {
  const Sha256 hash = KeyHash(key);
  return absl::StrCat(
      folder_, "/",
      absl::BytesToHexString({reinterpret_cast<const char*>(hash.data()), hash.size() / 2}),
      kSuffix);
}

absl::StatusOr<RepackCache::Found> RepackCache::Find(const RepackKey& key) const {
  const std::string path = PathOf(key);
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (file.get() < 0) return absl::NotFoundError(path);
  struct stat info = {};
  Header header = {};
  const bool is_valid = fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode) && IsOurs(info) &&
                        info.st_size == kHeaderBytes + key.bytes &&
                        pread(file.get(), &header, sizeof(header), 0) == ssize_t{sizeof(header)} &&
                        std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0 &&
                        header.checksum == ChecksumOf(header) && header.key == KeyHash(key) &&
                        header.payload_bytes == key.bytes;
  if (!is_valid) {
    Remove(key);
    return absl::NotFoundError(absl::StrCat(path, " is not valid"));
  }
  ASSIGN_OR_RETURN(PackedMemory memory,
                   PackedMemory::MapFile(file.get(), path, kHeaderBytes, key.bytes));
  // A file that is used is young: the oldest are removed first.
  (void)utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
  return Found{std::move(memory), {header.source_digest, header.payload_digest}};
}

absl::Status RepackCache::Store(const RepackKey& key, absl::Span<const uint8_t> payload,
                                const Sha256& source_digest, std::stop_token stop) const {
  CHECK_EQ(static_cast<int64_t>(payload.size()), key.bytes);
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.payload_bytes = key.bytes;
  header.key = KeyHash(key);
  header.source_digest = source_digest;
  ASSIGN_OR_RETURN(header.payload_digest, HashPayload(payload, stop));
  header.checksum = ChecksumOf(header);

  const std::string path = PathOf(key);
  std::string temporary = path + ".XXXXXX";
  const Descriptor file(mkostemp(temporary.data(), O_CLOEXEC));
  if (file.get() < 0) return IoError(temporary, "create");
  absl::Status written = WriteFile(file.get(), header, payload, temporary, stop);
  if (written.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    written = IoError(path, "rename");
  }
  if (!written.ok()) {
    unlink(temporary.c_str());
    return written;
  }
  const Descriptor folder(open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() >= 0)
    (void)fsync(folder.get());  // without it a crash may lose the file, no more
  RemoveOldest();
  return absl::OkStatus();
}

void RepackCache::Remove(const RepackKey& key) const { unlink(PathOf(key).c_str()); }

void RepackCache::RemoveOldest() const {
  namespace fs = std::filesystem;
  std::vector<std::pair<fs::file_time_type, fs::path>> whole;
  std::error_code error;
  const auto now = fs::file_time_type::clock::now();
  for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    const fs::path& path = it->path();
    const fs::file_time_type changed = fs::last_write_time(path, ignored);
    if (ignored) continue;  // another process was faster
    if (path.extension() == kSuffix) {
      whole.emplace_back(changed, path);
    } else if (absl::StrContains(path.filename().string(), kSuffix) &&
               now - changed > std::chrono::seconds(kAbandonedSeconds)) {
      fs::remove(path, ignored);
    }
  }
  std::sort(whole.begin(), whole.end());
  for (size_t i = 0; i + kMaxFiles < whole.size(); ++i) fs::remove(whole[i].second, error);
}

}  // namespace rempart::worker
