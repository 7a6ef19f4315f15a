// SPDX-License-Identifier: Apache-2.0
// A tokenizer.json for models of random weights: enough for the prompt "hi", and for requests that
// are given in tokens.
#pragma once

namespace rempart::worker {

inline constexpr char kTokenizer[] = R"({
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [],
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
              "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"<s>": 0, "h": 1, "i": 2, "hi": 3}, "merges": ["h i"]}})";

}  // namespace rempart::worker
