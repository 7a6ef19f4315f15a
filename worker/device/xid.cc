// SPDX-License-Identifier: Apache-2.0
#include "worker/device/xid.h"

namespace rempart::worker {
namespace {

constexpr bool kBroken = true;
constexpr bool kReported = false;

constexpr char kReset[] = "reset the GPU (nvidia-smi --gpu-reset) or reboot its node";
constexpr char kReplace[] =
    "reset the GPU or reboot its node; if it comes back, have the GPU tested and replaced";
constexpr char kReboot[] =
    "reboot the node; if it comes back, check the GPU's seat, power and slot";
constexpr char kFirmware[] =
    "reset the GPU or reboot its node; if it comes back, update the driver";
constexpr char kLinks[] =
    "reset the GPUs at both ends or reboot the node; if it comes back, check the link";
constexpr char kOurs[] = "nothing, when it is rare; else report it with the worker's log";
constexpr char kWhenIdle[] = "reset the GPU when nothing runs on it";

constexpr XidMeaning kXids[] = {
    {13, kReported, "a kernel did what the GPU does not allow", kOurs},
    {31, kReported, "a kernel used memory that is not its own", kOurs},
    {32, kReported, "the GPU was handed a broken command stream", kOurs},
    {43, kReported, "a process was stopped by its own error", kOurs},
    {45, kReported, "the work of a process that ended was cleared away", "nothing"},
    {46, kBroken, "the GPU has stopped processing", kReset},
    {48, kBroken, "memory of the GPU has an error that ECC cannot correct", kReplace},
    {54, kReported, "the GPU board lacks auxiliary power", "check the board's power cables"},
    {62, kBroken, "the GPU's power controller has halted", kReset},
    {63, kReported, "broken memory is replaced by spare rows at the next reset", kWhenIdle},
    {64, kBroken, "broken memory could not be replaced by spare rows", kReplace},
    {69, kReported, "a kernel gave the GPU a wrong class of command", kOurs},
    {74, kBroken, "an NVLink of the GPU has failed", kLinks},
    {79, kBroken, "the GPU has fallen off the bus", kReboot},
    {92, kReported, "ECC corrects unusually many errors", "have the GPU tested"},
    {94, kBroken, "memory that this process used is lost to an error that ECC cannot correct",
     kWhenIdle},
    {95, kBroken, "an error that ECC cannot correct has spread to all that runs on the GPU",
     kReset},
    {109, kBroken, "the GPU does not switch between processes any more", kReset},
    {110, kBroken, "the GPU reports a security fault", kReboot},
    {119, kBroken, "the GPU's system processor does not answer the driver", kFirmware},
    {120, kBroken, "the GPU's system processor has failed", kFirmware},
    {136, kBroken, "an NVLink of the GPU could not be trained", kLinks},
    {137, kReported, "a kernel reached over NVLink for memory that is not its own", kOurs},
    {140, kBroken, "memory of the GPU has an error that could not be contained", kReplace},
    {143, kBroken, "the GPU could not be initialised", kReset},
    {144, kReported, "NVLink reports an error (SAW)", "read its severity in the node's kernel log"},
    {145, kReported, "NVLink reports an error (RLW)", "read its severity in the node's kernel log"},
    {146, kReported, "NVLink reports an error (TLW)", "read its severity in the node's kernel log"},
    {147, kReported, "NVLink reports an error (TREX)",
     "read its severity in the node's kernel log"},
    {148, kReported, "NVLink reports an error (NVLPW)",
     "read its severity in the node's kernel log"},
    {149, kReported, "NVLink reports an error (NETIR)",
     "read its severity in the node's kernel log"},
    {150, kReported, "NVLink reports an error (MSE)", "read its severity in the node's kernel log"},
    {154, kReported, "the driver has changed its mind on what the GPU needs",
     "the node's kernel log says what"},
    {156, kBroken, "a part of the GPU is retired at the next reset", kReset},
    {157, kReported, "a part of the GPU that broke could not be retired", "have the GPU tested"},
    {158, kBroken, "the GPU has not answered for too long", kReset},
};

}  // namespace

XidMeaning MeaningOf(int64_t xid) {
  for (const XidMeaning& known : kXids) {
    if (known.xid == xid) return known;
  }
  return {xid, kReported, "not one that Rempart knows", "look it up in NVIDIA's XID catalogue"};
}

absl::Span<const XidMeaning> KnownXids() { return kXids; }

}  // namespace rempart::worker
