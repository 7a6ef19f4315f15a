// SPDX-License-Identifier: Apache-2.0
#include "worker/model/file_pages.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/time/civil_time.h"
#include "common/printable.h"

namespace rempart::worker {
namespace {

// A signal handler may take no lock and no memory: all that it reads is here.
constexpr int kSlots = 1024;
constexpr size_t kMaxPathBytes = 1024;
struct Slot {
  std::atomic<bool> is_taken{false};
  std::atomic<uintptr_t> begin{0};  // 0: the rest is not valid
  uintptr_t end = 0;
  char path[kMaxPathBytes] = {};
};
Slot slots[kSlots];
int exit_code_on_loss = 1;

const Slot* Find(uintptr_t address) {
  for (const Slot& slot : slots) {
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    if (begin != 0 && begin <= address && address < slot.end) return &slot;
  }
  return nullptr;
}

// A line of the log (common/log.h), by hand.
class Line {
 public:
  void Add(absl::string_view text) {
    const size_t size = std::min(text.size(), sizeof(text_) - size_);
    std::memcpy(text_ + size_, text.data(), size);
    size_ += size;
  }
  void AddNumber(int64_t value, int digits) {
    char reversed[20];
    int count = 0;
    for (; count < digits; value /= 10) reversed[count++] = static_cast<char>('0' + value % 10);
    while (count > 0) Add({&reversed[--count], 1});
  }
  void AddTime() {
    timespec now = {};
    clock_gettime(CLOCK_REALTIME, &now);
    const absl::CivilSecond at = absl::CivilSecond(1970, 1, 1) + now.tv_sec;
    AddNumber(at.year(), 4);
    Add("-"), AddNumber(at.month(), 2);
    Add("-"), AddNumber(at.day(), 2);
    Add("T"), AddNumber(at.hour(), 2);
    Add(":"), AddNumber(at.minute(), 2);
    Add(":"), AddNumber(at.second(), 2);
    Add("."), AddNumber(now.tv_nsec / 1000000, 3);
    Add("Z");
  }
  void Write() const {
    // Nothing can be done about what is not written.
    if (write(STDERR_FILENO, text_, size_) < 0) return;
  }

 private:
  char text_[kMaxPathBytes + 512];
  size_t size_ = 0;
};

void OnSigbus(int /*number*/, siginfo_t* info, void* /*context*/) {
  // What a process has sent has no address.
  const bool is_fault = info->si_code > 0;
  const Slot* const slot = is_fault ? Find(reinterpret_cast<uintptr_t>(info->si_addr)) : nullptr;
  if (slot ==
      nullptr) {  // as without this handler: when the instruction is tried again, or at once
    signal(SIGBUS, SIG_DFL);
    if (!is_fault) raise(SIGBUS);
    return;
  }
  Line line;
  line.AddTime();
  line.Add(" ERROR worker: ");
  line.Add(slot->path);
  line.Add(
      ": cannot be read any more where it is mapped: the file was cut, or its disk or volume is "
      "gone. Never write into a model's file while it is served: write another one and rename it; "
      "then start again\n");
  line.Write();
  _exit(exit_code_on_loss);
}

}  // namespace

FilePages::FilePages(absl::Span<const uint8_t> bytes, const std::string& path) {
  if (bytes.empty()) return;
  for (int i = 0; i < kSlots; ++i) {
    if (slots[i].is_taken.exchange(true, std::memory_order_acquire)) continue;
    const std::string text = Printable(path, kMaxPathBytes / 2);
    const size_t size = std::min(text.size(), kMaxPathBytes - 1);
    std::memcpy(slots[i].path, text.data(), size);
    slots[i].path[size] = '\0';
    const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
    slots[i].end = begin + bytes.size();
    slots[i].begin.store(begin, std::memory_order_release);
    slot_ = i;
    return;
  }
}

FilePages::FilePages(FilePages&& other) noexcept : slot_(std::exchange(other.slot_, -1)) {}

FilePages& FilePages::operator=(FilePages&& other) noexcept {
  std::swap(slot_, other.slot_);
  return *this;
}

FilePages::~FilePages() {
  if (slot_ < 0) return;
  slots[slot_].begin.store(0, std::memory_order_relaxed);
  slots[slot_].is_taken.store(false, std::memory_order_release);
}

void EndOnUnreadablePages(int exit_code) {
  exit_code_on_loss = exit_code;
  struct sigaction action = {};
  action.sa_sigaction = OnSigbus;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace rempart::worker
