// SPDX-License-Identifier: Apache-2.0
//! Tokens that end a turn or a text by their name, whatever a file declares as its end: those of llama.cpp's list that
//! vocabularies of the served families have.

/// Nothing else is spelled like these.
const MARKERS: [&str; 9] = [
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>",
    "<end_of_utterance>", "<｜end▁of▁sentence｜>",
];

/// These may be text too: `</s>` closes an element of HTML, and Qwen's vocabularies have a normal token for it.
const MARKERS_OR_TEXT: [&str; 6] = ["</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"];

pub fn is_marker(spelling: &[u8]) -> bool {
    MARKERS.iter().any(|marker| marker.as_bytes() == spelling)
}

/// Of a control token.
pub fn ends_by_name(spelling: &[u8]) -> bool {
    is_marker(spelling) || MARKERS_OR_TEXT.iter().any(|marker| marker.as_bytes() == spelling)
}
