// SPDX-License-Identifier: Apache-2.0
// The SHA-256 of the files a model was loaded from, and what follows from it: whether they are what
// the configuration names, whether repacked weights of an earlier start belong to them, and keeping
// repacked weights for the next start. Runs beside the start or after it, never before a request.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "worker/model/repack_cache.h"
#include "worker/model/weights.h"

namespace rempart::worker {

using HashProgress = std::function<void(int64_t done, int64_t total)>;
// Of files, by their paths.
using FileHashes = std::map<std::string, Sha256>;

// Reads the file without mapping it, so that its pages stay out of this process. Cancelled when
// asked to stop; Unavailable when it cannot be read.
absl::StatusOr<Sha256> HashFile(const std::string& path, std::stop_token stop,
                                const HashProgress& on_progress);

// Of a model file its SHA-256; of a folder, or a file in parts, that of what `sha256sum` prints in
// that folder about its model files or parts (ModelFilesOf), in the order of their names. Files
// that are `known` are not read again.
absl::StatusOr<Sha256> HashModel(const std::string& path, std::stop_token stop,
                                 const HashProgress& on_progress, const FileHashes& known = {});

// SampleSource of a model file, or of all model files of a folder, or all parts of a file.
absl::StatusOr<Sha256> SampleModel(const std::string& path);

// InvalidArgument, naming both, when `wanted` is another digest. An empty `wanted` fits any.
absl::Status CheckDigest(const std::string& path, const std::string& wanted, const Sha256& seen);

// Weights that came from `cache`: DataLoss, and the cache entry is gone, when they were made from
// another source or have changed since they were written. Others are stored there; a store that
// fails is logged. Cancelled when asked to stop.
absl::Status SettleRepacked(const std::string& path, const Sha256& source_digest,
                            const Weights& weights, const RepackCache& cache, std::stop_token stop);

}  // namespace rempart::worker
