// SPDX-License-Identifier: Apache-2.0
#include "worker/api/source_check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <numeric>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

constexpr size_t kReadChunk = size_t{1} << 20;

absl::Status ReadError(const std::string& path) {
  return absl::UnavailableError(absl::StrCat(path, ": cannot read: ", std::strerror(errno)));
}

std::string NameOf(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

}  // namespace

absl::StatusOr<Sha256> HashFile(const std::string& path, std::stop_token stop,
                                const HashProgress& on_progress) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ReadError(path);
  const std::unique_ptr<const int, void (*)(const int*)> closer(&fd,
                                                                [](const int* f) { close(*f); });
  struct stat info = {};
  if (fstat(fd, &info) != 0) return ReadError(path);
  Sha256Hasher hasher;
  std::vector<uint8_t> chunk(kReadChunk);
  int64_t done = 0;
  for (;;) {
    if (stop.stop_requested()) return absl::CancelledError("stopping");
    const ssize_t count = read(fd, chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ReadError(path);
    if (count == 0) break;
    hasher.Add(chunk.data(), static_cast<size_t>(count));
    done += count;
    if (on_progress) on_progress(done, info.st_size);
  }
  return hasher.Finish();
}

absl::StatusOr<Sha256> HashModel(const std::string& path, std::stop_token stop,
                                 const HashProgress& on_progress, const FileHashes& known) {
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ModelFilesOf(path));
  const auto hash_of = [&](const std::string& file,
                           const HashProgress& progress) -> absl::StatusOr<Sha256> {
    const auto found = known.find(file);
    if (found != known.end()) return found->second;
    return HashFile(file, stop, progress);
  };
  if (!IsFolder(path) && files.size() == 1) return hash_of(path, on_progress);
  std::vector<int64_t> sizes;
  for (const std::string& file : files) {
    std::error_code error;
    const auto size = std::filesystem::file_size(file, error);
    sizes.push_back(error ? 0 : static_cast<int64_t>(size));
  }
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  int64_t before = 0;
  Sha256Hasher all;
  for (size_t i = 0; i < files.size(); ++i) {
    const auto progress = [&](int64_t done, int64_t) {
      if (on_progress) on_progress(before + done, total);
    };
    ASSIGN_OR_RETURN(const Sha256 hash, hash_of(files[i], progress));
    const std::string line =
        absl::StrCat(absl::StripPrefix(DigestText(hash), "sha256:"), "  ", NameOf(files[i]), "\n");
    all.Add(line.data(), line.size());
    before += sizes[i];
  }
  return all.Finish();
}

absl::StatusOr<Sha256> SampleModel(const std::string& path) {
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ModelFilesOf(path));
  if (!IsFolder(path) && files.size() == 1) return SampleSource(path);
  Sha256Hasher all;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(const Sha256 sample, SampleSource(file));
    const std::string line = absl::StrCat(DigestText(sample), "  ", NameOf(file), "\n");
    all.Add(line.data(), line.size());
  }
  return all.Finish();
}

absl::Status CheckDigest(const std::string& path, const std::string& wanted, const Sha256& seen) {
  const std::string text = DigestText(seen);
  if (wanted.empty() || wanted == text) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, " has the digest ", text, ", but the model asks for ", wanted,
                   ": put the right file there, or correct source.digest"));
}

absl::Status SettleRepacked(const std::string& path, const Sha256& source_digest,
                            const Weights& weights, const RepackCache& cache,
                            std::stop_token stop) {
  if (weights.packed.bytes().empty()) return absl::OkStatus();
  if (!weights.from_cache) {
    const absl::Status stored =
        cache.Store(weights.packed_key, weights.packed.bytes(), source_digest, stop);
    if (absl::IsCancelled(stored)) return stored;
    if (!stored.ok()) {
      LogWarning("worker", "repacked weights were not kept", {{"reason", stored.message()}});
    }
    return absl::OkStatus();
  }
  const bool same_source = weights.from_cache->source == source_digest;
  if (same_source) {
    ASSIGN_OR_RETURN(const Sha256 payload, HashPayload(weights.packed.bytes(), stop));
    if (weights.from_cache->payload == payload) return absl::OkStatus();
  }
  cache.Remove(weights.packed_key);
  return absl::DataLossError(
      absl::StrCat(path, ": the repacked weights in ", cache.folder(),
                   same_source ? " have changed since they were written" : " are of another file",
                   "; they have been removed and the next start makes them anew"));
}

}  // namespace rempart::worker
