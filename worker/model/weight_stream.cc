// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weight_stream.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "kernels/cuda/numbers.h"

namespace rempart::worker {
namespace {

// For each reader: one is filled while the device takes the other.
constexpr int kBuffersPerReader = 2;
// How often those who wait look whether they shall stop.
constexpr absl::Duration kLook = absl::Milliseconds(20);

absl::Status GivenUp() { return absl::CancelledError("loading was given up"); }

void ToBf16(Recast recast, const uint8_t* from, int64_t bytes, uint8_t* to) {
  const int64_t width = recast == Recast::kF32ToBf16 ? 4 : 2;
  for (int64_t i = 0; i < bytes / width; ++i) {
    float value = 0;
    if (recast == Recast::kF32ToBf16) {
      std::memcpy(&value, from + 4 * i, 4);
    } else {
      uint16_t half = 0;
      std::memcpy(&half, from + 2 * i, 2);
      value = kernels::cuda::HalfBitsToFloat(half);
    }
    const kernels::cuda::Bf16 rounded = kernels::cuda::ToBf16(value);
    std::memcpy(to + 2 * i, &rounded, 2);
  }
}

class Stream {
 public:
  Stream(Device& device, absl::Span<const WeightCopy> copies, absl::Span<const MappedFile> files,
         const StreamOptions& options)
      : device_(device), copies_(copies), files_(files), options_(options) {
    std::vector<FileExtent> extents;
    for (const MappedFile& file : files) {
      extents.push_back({file.bytes().data(), static_cast<int64_t>(file.bytes().size())});
    }
    plan_ = MakeReadPlan(copies, extents, options.read);
    to_queue_ = std::count_if(plan_.pieces.begin(), plan_.pieces.end(),
                              [](const ReadPiece& piece) { return piece.copy != kOnlyHashed; });
    if (options.read.hash_files) {
      hashed_.resize(files.size());
      hashers_ = std::vector<Sha256Hasher>(files.size());
      hash_times_.resize(files.size());
    }
  }

  absl::StatusOr<StreamResult> Run() {
    const int threads = static_cast<int>(
        std::clamp<int64_t>(options_.threads, 1, std::max<int64_t>(1, plan_.pieces.size())));
    for (int i = 0; i < threads * kBuffersPerReader; ++i) {
      ASSIGN_OR_RETURN(buffers_.emplace_back(), PinnedBuffer::Make(device_, plan_.largest));
      MutexLock lock(&mu_);
      free_.push_back(i);
    }
    absl::Status delivered;
    {
      std::vector<std::jthread> readers;
      for (int i = 0; i < threads; ++i) readers.emplace_back([this] { Read(); });
      delivered = Deliver();
      if (!delivered.ok()) Fail(delivered);
    }
    // Also when it failed: the device reads from the buffers.
    const absl::Status retired = Retire();
    MutexLock lock(&mu_);
    RETURN_IF_ERROR(error_);
    RETURN_IF_ERROR(retired);
    StreamResult result;
    result.times = {read_time_ / threads, absl::ZeroDuration(), wait_time_};
    for (const absl::Duration time : hash_times_) {
      result.times.hash = std::max(result.times.hash, time);
    }
    for (Sha256Hasher& hasher : hashers_) result.hashes.push_back(hasher.Finish());
    return result;
  }

 private:
  struct Filled {
    const ReadPiece* piece;
    int buffer;
  };

  // A reader.
  void Read() {
    for (;;) {
      Filled filled = {};
      if (!Begin(filled)) return;
      const absl::Status status = Fill(filled);
      if (!status.ok()) return Fail(status);
      MutexLock lock(&mu_);
      if (filled.piece->copy == kOnlyHashed) {
        free_.push_back(filled.buffer);
      } else {
        ready_.push_back(filled);
      }
    }
  }

  // The next piece and a buffer for it, both taken at once: so the first piece of a file that is
  // not hashed yet always has one. False: there is no more to do.
  bool Begin(Filled& filled) {
    MutexLock lock(&mu_);
    const auto can = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return !error_.ok() || next_ == plan_.pieces.size() || !free_.empty();
    };
    while (!mu_.AwaitWithTimeout(absl::Condition(&can), kLook)) {
      if (options_.stop.stop_requested()) break;
    }
    // Not only what is to be queued counts, but also what is hashed alone.
    if (options_.stop.stop_requested() && error_.ok()) error_ = GivenUp();
    if (!error_.ok() || next_ == plan_.pieces.size()) return false;
    filled = {&plan_.pieces[next_++], free_.back()};
    free_.pop_back();
    return true;
  }

  absl::Status Fill(const Filled& filled) {
    const ReadPiece& piece = *filled.piece;
    auto* const at = buffers_[static_cast<size_t>(filled.buffer)].as<uint8_t>();
    const absl::Time begin = SteadyNow();
    const WeightCopy* const copy =
        piece.copy == kOnlyHashed ? nullptr : &copies_[static_cast<size_t>(piece.copy)];
    if (copy != nullptr && copy->make) {
      copy->make(piece.at / copy->row_bytes, piece.bytes / copy->row_bytes, at);
    } else if (piece.file == kInMemory) {
      std::memcpy(at, piece.memory + piece.begin, static_cast<size_t>(piece.size()));
    } else {
      RETURN_IF_ERROR(options_.reader(files_[static_cast<size_t>(piece.file)], piece.begin,
                                      absl::MakeSpan(at, static_cast<size_t>(piece.size()))));
    }
    const absl::Time read = SteadyNow();
    if (!hashers_.empty() && piece.file != kInMemory) RETURN_IF_ERROR(Hash(piece, at));
    const absl::Time hashed = SteadyNow();
    if (copy != nullptr && !copy->make) BringTogether(piece, *copy, at);
    const absl::Duration took = read - begin + (SteadyNow() - hashed);
    MutexLock lock(&mu_);
    read_time_ += took;
    return absl::OkStatus();
  }

  // When all before it in the file is hashed, which others do meanwhile.
  absl::Status Hash(const ReadPiece& piece, const uint8_t* at) {
    if (piece.hash_from == piece.end) return absl::OkStatus();
    const auto file = static_cast<size_t>(piece.file);
    {
      MutexLock lock(&mu_);
      const auto is_next = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return !error_.ok() || hashed_[file] == piece.hash_from;
      };
      while (!mu_.AwaitWithTimeout(absl::Condition(&is_next), kLook)) {
        if (options_.stop.stop_requested()) return GivenUp();
      }
      RETURN_IF_ERROR(error_);
    }
    const absl::Time begin = SteadyNow();
    hashers_[file].Add(at + (piece.hash_from - piece.begin),
                       static_cast<size_t>(piece.end - piece.hash_from));
    MutexLock lock(&mu_);
    hash_times_[file] += SteadyNow() - begin;
    hashed_[file] = piece.end;
    return absl::OkStatus();
  }

  // What the copy wants of the piece, side by side and recast, at the beginning of the buffer.
  // Nothing grows, so nothing is written over before it was read.
  static void BringTogether(const ReadPiece& piece, const WeightCopy& copy, uint8_t* at) {
    const bool is_one_run = copy.stride_bytes == copy.row_bytes;
    if (is_one_run && piece.skip == 0 && copy.recast == Recast::kNone) return;
    const int64_t run = is_one_run ? piece.bytes : copy.row_bytes;
    const int64_t step = is_one_run ? piece.bytes : copy.stride_bytes;
    const uint8_t* from = at + piece.skip;
    for (int64_t done = 0; done < piece.bytes; done += run, from += step) {
      if (copy.recast == Recast::kNone) {
        std::memmove(at, from, static_cast<size_t>(run));
      } else {
        ToBf16(copy.recast, from, run, at);
      }
      at += RecastBytes(copy.recast, run);
    }
  }

  // The caller's thread: queues what is ready until all is queued.
  absl::Status Deliver() {
    int64_t bytes = 0;
    for (int64_t queued = 0; queued < to_queue_; ++queued) {
      ASSIGN_OR_RETURN(const Filled filled, NextReady());
      bytes += Queue(filled);
      on_way_.push_back(filled.buffer);
      if (options_.on_progress) options_.on_progress(bytes);
      if (on_way_.size() >= buffers_.size() / 2) RETURN_IF_ERROR(Retire());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Filled> NextReady() {
    const auto come = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return !error_.ok() || !ready_.empty();
    };
    {
      MutexLock lock(&mu_);
      RETURN_IF_ERROR(error_);
      if (!ready_.empty()) return TakeReady();
    }
    // There is nothing better to do.
    RETURN_IF_ERROR(Retire());
    MutexLock lock(&mu_);
    while (!mu_.AwaitWithTimeout(absl::Condition(&come), kLook)) {
      if (options_.stop.stop_requested()) return GivenUp();
    }
    RETURN_IF_ERROR(error_);
    return TakeReady();
  }
  Filled TakeReady() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const Filled filled = ready_.front();
    ready_.pop_front();
    return filled;
  }

  // Bytes that the device gets.
  int64_t Queue(const Filled& filled) {
    const ReadPiece& piece = *filled.piece;
    const WeightCopy& copy = copies_[static_cast<size_t>(piece.copy)];
    const auto* const from = buffers_[static_cast<size_t>(filled.buffer)].as<uint8_t>();
    const int64_t bytes = RecastBytes(copy.recast, piece.bytes);
    if (copy.on_device) {
      device_.CopyIn(copy.to, from, bytes);
      copy.on_device(piece.at / copy.row_bytes, piece.bytes / copy.row_bytes);
    } else {
      device_.CopyIn(copy.to + RecastBytes(copy.recast, piece.at), from, bytes);
    }
    return bytes;
  }

  // Waits for what is on its way, whose buffers are free then.
  absl::Status Retire() {
    if (on_way_.empty()) return absl::OkStatus();
    const absl::Time begin = SteadyNow();
    const absl::Status finished = device_.Finish();
    wait_time_ += SteadyNow() - begin;
    MutexLock lock(&mu_);
    free_.insert(free_.end(), on_way_.begin(), on_way_.end());
    on_way_.clear();
    return finished;
  }

  void Fail(const absl::Status& status) {
    MutexLock lock(&mu_);
    if (error_.ok()) error_ = status;
  }

  Device& device_;
  const absl::Span<const WeightCopy> copies_;
  const absl::Span<const MappedFile> files_;
  const StreamOptions& options_;
  ReadPlan plan_;
  int64_t to_queue_ = 0;
  std::vector<PinnedBuffer> buffers_;

  // Of the caller's thread.
  std::vector<int> on_way_;
  absl::Duration wait_time_;
  // Each is used by the reader whose turn it is in the file.
  std::vector<Sha256Hasher> hashers_;

  Mutex mu_;
  absl::Status error_ ABSL_GUARDED_BY(mu_);
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;  // of plan_.pieces
  std::vector<int> free_ ABSL_GUARDED_BY(mu_);
  std::deque<Filled> ready_ ABSL_GUARDED_BY(mu_);
  std::vector<int64_t> hashed_ ABSL_GUARDED_BY(mu_);  // by file, from its beginning
  std::vector<absl::Duration> hash_times_ ABSL_GUARDED_BY(mu_);
  absl::Duration read_time_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::Status ReadMappedFile(const MappedFile& file, int64_t offset, absl::Span<uint8_t> to) {
  for (size_t done = 0; done < to.size();) {
    const ssize_t count = pread(file.descriptor(), to.data() + done, to.size() - done,
                                static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::UnavailableError(absl::StrCat(
          file.path(), ": cannot read: ", std::strerror(errno), "; check the volume it is on"));
    }
    if (count == 0) {
      // The read may have begun behind the end, which the file itself knows.
      struct stat now = {};
      const int64_t read_to = offset + static_cast<int64_t>(done);
      const int64_t end =
          fstat(file.descriptor(), &now) == 0 ? std::min<int64_t>(now.st_size, read_to) : read_to;
      return absl::DataLossError(
          absl::StrCat(file.path(), ": ends at byte ", end, ", and had ", file.bytes().size(),
                       " when it was opened: it was changed while it was read; put the whole file "
                       "there before the model starts"));
    }
    done += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<StreamResult> StreamWeights(Device& device, absl::Span<const WeightCopy> copies,
                                           absl::Span<const MappedFile> files,
                                           const StreamOptions& options) {
  return Stream(device, copies, files, options).Run();
}

}  // namespace rempart::worker
