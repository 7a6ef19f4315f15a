// SPDX-License-Identifier: Apache-2.0
//! The vocabulary inside a GGUF file: what its types and names mean, where its pre-tokenizer splits a text, and in which order its
//! pairs merge. What contradicts itself is refused by the name of the key.

use std::collections::{HashMap, HashSet};

use crate::endings::{ends_by_name, is_marker};
use crate::tokenizer::{definition, pattern, Strips};
use kitoken::{
    Configuration, Definition, Fallback, Model, Normalization, SpecialToken, SpecialTokenKind, SplitBehavior, Token,
};

pub struct GgufVocabulary<'a> {
    pub model: &'a str,
    pub pre: &'a str,
    pub tokens: Vec<&'a [u8]>,
    pub scores: &'a [f32],
    pub types: &'a [i32],
    pub merges: Vec<&'a [u8]>,
    pub add_space_prefix: bool,
    /// Of two tokens with one spelling one is a mistake; added tokens beside tokenizer.model may repeat a piece.
    pub unique_tokens: bool,
    /// By id, of those that are known to take any. GGUF has no field for it.
    pub strips: HashMap<u32, Strips>,
}

// Token types of GGUF.
pub const NORMAL: i32 = 1;
pub const UNKNOWN: i32 = 2;
pub const CONTROL: i32 = 3;
pub const USER_DEFINED: i32 = 4;
pub const UNUSED: i32 = 5;
pub const BYTE: i32 = 6;

/// The type that a token is given. One that ends turns is control, so that a user's text cannot contain it, even where a
/// file calls it user-defined, or a marker normal (llama.cpp does the same, and with what may be text as well).
fn corrected(declared: i32, spelling: &[u8]) -> i32 {
    match declared {
        UNKNOWN | BYTE => declared,
        USER_DEFINED if ends_by_name(spelling) => CONTROL,
        _ if is_marker(spelling) => CONTROL,
        _ => declared,
    }
}

/// Of what is found in a text by its spelling.
pub fn is_special(kind: i32) -> bool {
    matches!(kind, CONTROL | UNKNOWN | USER_DEFINED)
}

impl GgufVocabulary<'_> {
    /// Or SentencePiece's.
    pub fn is_byte_level(&self) -> Result<bool, String> {
        match self.model {
            "gpt2" => Ok(true),
            "llama" => Ok(false),
            other => Err(format!("tokenizer.ggml.model is '{other}'; this version knows gpt2 and llama")),
        }
    }

    /// Of every token.
    pub fn kinds(&self) -> Vec<i32> {
        let declared = |i: usize| self.types.get(i).copied().unwrap_or(NORMAL);
        self.tokens.iter().enumerate().map(|(i, spelling)| corrected(declared(i), spelling)).collect()
    }

    /// What each token is in a text, and whether it is a control token.
    pub fn token_bytes(&self, kinds: &[i32]) -> Result<Vec<(Vec<u8>, bool)>, String> {
        let byte_level = self.is_byte_level()?;
        let byte_of = byte_level_map();
        let mut tokens = Vec::with_capacity(self.tokens.len());
        for (i, raw) in self.tokens.iter().enumerate() {
            let bytes = match kinds[i] {
                CONTROL | UNKNOWN | USER_DEFINED => raw.to_vec(),
                BYTE => vec![byte_token(raw).ok_or_else(|| {
                    format!("tokenizer.ggml.tokens[{i}] is of type byte but not spelled <0xNN>")
                })?],
                _ if byte_level => from_byte_level(raw, &byte_of).unwrap_or_else(|| raw.to_vec()),
                _ => raw.to_vec(),
            };
            tokens.push((bytes, matches!(kinds[i], CONTROL | UNKNOWN)));
        }
        Ok(tokens)
    }

    /// Those that the vocabulary came with, or those of Phi 3's tokenizer.json, whose GGUF files are told by their roles (llama.cpp
    /// tells them by general.name): its chat template puts a line break after each of its tokens, which they take.
    pub fn strips_of(&self) -> impl Fn(usize) -> Strips {
        let roles: [&[u8]; 4] = [b"<|system|>", b"<|user|>", b"<|assistant|>", b"<|end|>"];
        let phi3 = self.model == "llama" && roles.iter().all(|role| self.tokens.contains(role));
        let plain: [&[u8]; 3] = [b"<unk>", b"<s>", b"<|endoftext|>"];
        let plain: Vec<usize> = (0..self.tokens.len()).filter(|&i| plain.contains(&self.tokens[i])).collect();
        let known = self.strips.clone();
        move |i| {
            let default = Strips { left: false, right: phi3 && !plain.contains(&i) };
            known.get(&(i as u32)).copied().unwrap_or(default)
        }
    }

    pub fn definition(&self, kinds: &[i32], tokens: &[(Vec<u8>, bool)]) -> Result<Definition, String> {
        let normal: Vec<usize> =
            (0..kinds.len()).filter(|&i| !is_special(kinds[i]) && kinds[i] != UNUSED).collect();
        if self.is_byte_level()? {
            return byte_level_definition(self, tokens, &normal);
        }
        sentencepiece_definition(self, tokens, &normal, kinds.iter().position(|&kind| kind == UNKNOWN))
    }
}

/// GPT-2's spelling of bytes as printable characters, read backwards.
fn byte_level_map() -> HashMap<char, u8> {
    let mut map = HashMap::new();
    let mut next = 256u32;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        map.insert(char::from_u32(code).unwrap_or('\0'), byte);
    }
    map
}

fn from_byte_level(raw: &[u8], map: &HashMap<char, u8>) -> Option<Vec<u8>> {
    std::str::from_utf8(raw).ok()?.chars().map(|c| map.get(&c).copied()).collect()
}

/// The byte of a token spelled <0xNN>.
fn byte_token(raw: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(raw).ok()?;
    u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

const GPT2_SPLIT: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizers that GGUF names in tokenizer.ggml.pre, as successive splits: those of the models' own
/// tokenizer.json, so that a GGUF file and a folder of one model read a text alike. (llama.cpp rewrites tekken's
/// and gpt-4o's without classes of letters, and splits accents and marks otherwise.) A file that names none is
/// split in the four steps that llama.cpp has for such files.
fn splits(pre: &str) -> Result<Vec<&'static str>, String> {
    Ok(match pre {
        "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" => {
            vec![r"\p{N}", GPT2_SPLIT]
        }
        "" | "default" => vec![r"[\p{P}$+<=>^~|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"],
        "gpt-2" | "gpt2" | "mpt" | "olmo" | "jais" | "phi-2" => vec![GPT2_SPLIT],
        "llama3" | "llama-v3" | "llama-bpe" | "smaug-bpe" | "falcon3" | "pixtral" | "dbrx" => {
            vec![LLAMA3_SPLIT]
        }
        "qwen2" | "deepseek-r1-qwen" | "megrez" | "stablelm2" | "hunyuan" => vec![QWEN2_SPLIT],
        "tekken" => vec![TEKKEN_SPLIT],
        "gpt-4o" => vec![O200K_SPLIT],
        other => {
            return Err(format!(
                "tokenizer.ggml.pre is '{other}'; this version knows default, gpt-2, smollm, \
                 starcoder, llama-bpe (Llama 3), qwen2, tekken (Mistral), dbrx (Phi 4) and gpt-4o (Phi 4 \
                 mini): use a file of one of these, or the model's folder with its tokenizer.json"
            ))
        }
    })
}

/// Byte-level BPE: ranks are the order of the merges.
fn byte_level_definition(
    vocabulary: &GgufVocabulary,
    tokens: &[(Vec<u8>, bool)],
    normal: &[usize],
) -> Result<Definition, String> {
    if vocabulary.merges.is_empty() {
        return Err("tokenizer.ggml.merges is missing or empty".to_string());
    }
    let rank = merge_ranks(vocabulary)?;
    let mut order: Vec<(usize, usize)> = normal.iter().map(|&i| (rank[i], i)).collect();
    order.sort();
    let mut config = Configuration::default();
    config.fallback = vec![Fallback::Skip];
    for split in splits(vocabulary.pre)? {
        config.split.push(pattern(split, SplitBehavior::Isolate)?);
    }
    let ordered = unique(order.into_iter().map(|(_, i)| i), tokens);
    Ok(definition(Model::BytePair { vocab: ordered, chars: false }, Vec::new(), config))
}

/// Every spelling but the empty one is there once, or the file is damaged.
fn ids_by_spelling<'a>(tokens: &[&'a [u8]]) -> Result<HashMap<&'a [u8], usize>, String> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (i, &token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(token, i).filter(|_| !token.is_empty()) {
            return Err(format!(
                "tokenizer.ggml.tokens[{i}] is '{}', as tokenizer.ggml.tokens[{first}] is; convert the model with a \
                 current converter",
                String::from_utf8_lossy(token)
            ));
        }
    }
    Ok(ids)
}

/// Of each token the first merge that makes it, and usize::MAX where none does.
fn merge_ranks(vocabulary: &GgufVocabulary) -> Result<Vec<usize>, String> {
    let id_of = ids_by_spelling(&vocabulary.tokens)?;
    let mut rank = vec![usize::MAX; vocabulary.tokens.len()];
    let mut joined = Vec::new();
    for (i, merge) in vocabulary.merges.iter().enumerate() {
        let space = merge.iter().skip(1).position(|&b| b == b' ').map(|p| p + 1);
        let space =
            space.ok_or_else(|| format!("tokenizer.ggml.merges[{i}] is not a pair of tokens"))?;
        let (left, right) = (&merge[..space], &merge[space + 1..]);
        joined.clear();
        joined.extend_from_slice(left);
        joined.extend_from_slice(right);
        let id = |piece: &[u8]| {
            id_of.get(piece).copied().ok_or_else(|| {
                format!(
                    "tokenizer.ggml.merges[{i}] is '{}', but tokenizer.ggml.tokens has no '{}'; \
                     convert the model with a current converter",
                    String::from_utf8_lossy(merge),
                    String::from_utf8_lossy(piece)
                )
            })
        };
        id(left)?;
        id(right)?;
        let made = &mut rank[id(&joined)?];
        *made = i.min(*made);
    }
    Ok(rank)
}

/// SentencePiece BPE as GGUF keeps it: ranks are the scores, the highest first.
fn sentencepiece_definition(
    vocabulary: &GgufVocabulary,
    tokens: &[(Vec<u8>, bool)],
    normal: &[usize],
    unknown: Option<usize>,
) -> Result<Definition, String> {
    if vocabulary.scores.len() != tokens.len() {
        return Err(format!(
            "tokenizer.ggml.scores has {} entries for {} tokens",
            vocabulary.scores.len(),
            tokens.len()
        ));
    }
    if vocabulary.unique_tokens {
        ids_by_spelling(&vocabulary.tokens)?;
    }
    if let Some(i) = vocabulary.scores.iter().position(|score| score.is_nan()) {
        return Err(format!(
            "tokenizer.ggml.scores[{i}] is not a number; convert the model with a current converter"
        ));
    }
    let is_byte = |i: usize| vocabulary.types.get(i) == Some(&BYTE);
    let mut order: Vec<usize> = normal.to_vec();
    // Byte tokens come last, so that a character's own token wins over its byte.
    order.sort_by(|&a, &b| {
        is_byte(a)
            .cmp(&is_byte(b))
            .then(vocabulary.scores[b].total_cmp(&vocabulary.scores[a]))
            .then(a.cmp(&b))
    });
    let mut config = Configuration::default();
    config.fallback = vec![Fallback::Bytes, Fallback::Unknown, Fallback::Skip];
    config.normalization.push(Normalization::Replace {
        pattern: " ".into(),
        replacement: "\u{2581}".to_string(),
    });
    // Splitting at spaces is faster, and the same unless a token spans two words.
    let spans_words = normal.iter().any(|&i| {
        let text = String::from_utf8_lossy(&tokens[i].0);
        text.trim_start_matches('\u{2581}').contains('\u{2581}')
    });
    if !spans_words {
        config.split.push(pattern("\u{2581}+", SplitBehavior::MergeRight)?);
    }
    let specials = unknown.map(|id| SpecialToken {
        id: id as u32,
        bytes: tokens[id].0.clone(),
        kind: SpecialTokenKind::Unknown,
        ident: None,
        score: 0.0,
        extract: false,
    });
    let ordered = unique(order.into_iter(), tokens);
    Ok(definition(
        Model::BytePair { vocab: ordered, chars: true },
        specials.into_iter().collect(),
        config,
    ))
}

/// Tokens in rank order; of two with the same bytes the first stays, as of a character and its byte.
fn unique(order: impl Iterator<Item = usize>, tokens: &[(Vec<u8>, bool)]) -> Vec<Token> {
    let mut seen = HashSet::with_capacity(tokens.len());
    order
        .filter(|&i| !tokens[i].0.is_empty() && seen.insert(tokens[i].0.as_slice()))
        .map(|i| Token { id: i as u32, bytes: tokens[i].0.clone() })
        .collect()
}
