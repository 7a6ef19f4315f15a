// SPDX-License-Identifier: Apache-2.0
//! Tokenizers from the vocabulary inside a GGUF file and from Hugging Face's tokenizer.json, both
//! run by kitoken. Special tokens are cut out of the text here, so that whether their spelling in
//! the text counts is decided per call.

use std::collections::HashMap;

use crate::token_table::TokenTable;
use crate::{sentencepiece, tekken};
use aho_corasick::{AhoCorasick, MatchKind};
use kitoken::convert::convert_tokenizers;
use kitoken::{
    Configuration, Decoding, Definition, Fallback, Kitoken, Metadata, Model, Normalization, Regex,
    SpecialToken, SpecialTokenKind, Split, SplitBehavior, Token,
};
use serde::Deserialize;

pub struct GgufVocabulary<'a> {
    pub model: &'a str,
    pub pre: &'a str,
    pub tokens: Vec<&'a [u8]>,
    pub scores: &'a [f32],
    pub types: &'a [i32],
    pub merges: Vec<&'a [u8]>,
    pub add_space_prefix: bool,
    /// By id, of those that are known to take any. GGUF has no field for it.
    pub strips: HashMap<u32, Strips>,
}

/// Whether a special token takes the white space before and after it, as an added token of tokenizer.json says.
#[derive(Clone, Copy, Default)]
pub struct Strips {
    left: bool,
    right: bool,
}

// Token types of GGUF.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Spellings that end a turn or a text. A vocabulary that lists one as an ordinary user-defined token
/// is corrected to control, so that a user's text cannot contain it (llama.cpp does the same).
const ENDINGS: [&[u8]; 9] = [
    b"</s>", b"<|eot_id|>", b"<|im_end|>", b"<|end|>", b"<end_of_turn>", b"<|endoftext|>",
    b"<|end_of_text|>", b"<EOT>", b"_<EOT>",
];

/// Matches the spellings of a set of special tokens, the longest at each place.
struct Specials {
    matcher: AhoCorasick,
    ids: Vec<u32>,
    strips: Vec<Strips>,
}

impl Specials {
    fn new(tokens: &[(Vec<u8>, u32, Strips)]) -> Result<Option<Self>, String> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(bytes, _, _)| bytes))
            .map_err(|e| format!("special tokens: {e}"))?;
        let ids = tokens.iter().map(|(_, id, _)| *id).collect();
        let strips = tokens.iter().map(|(_, _, strips)| *strips).collect();
        Ok(Some(Specials { matcher, ids, strips }))
    }
}

pub struct Tokenizer {
    encoder: Kitoken,
    tokens: TokenTable,
    /// Tokens that their spelling always means, and those that it means when `parse_special`.
    always: Option<Specials>,
    parsed: Option<Specials>,
    space_prefix: bool,
}

impl Tokenizer {
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, String> {
        let count = vocabulary.tokens.len();
        if count == 0 {
            return Err("tokenizer.ggml.tokens is missing or empty".to_string());
        }
        let kind = |i: usize| match vocabulary.types.get(i).copied().unwrap_or(1) {
            USER_DEFINED if ENDINGS.contains(&vocabulary.tokens[i]) => CONTROL,
            given => given,
        };
        let byte_level = match vocabulary.model {
            "gpt2" => true,
            "llama" => false,
            other => {
                return Err(format!(
                    "tokenizer.ggml.model is '{other}'; this version knows gpt2 and llama"
                ))
            }
        };
        let mut tokens = Vec::with_capacity(count);
        let byte_of = byte_level_map();
        for (i, raw) in vocabulary.tokens.iter().enumerate() {
            let control = matches!(kind(i), CONTROL | UNKNOWN);
            let bytes = match kind(i) {
                CONTROL | UNKNOWN | USER_DEFINED => raw.to_vec(),
                BYTE => vec![byte_token(raw).ok_or_else(|| {
                    format!("tokenizer.ggml.tokens[{i}] is of type byte but not spelled <0xNN>")
                })?],
                _ if byte_level => from_byte_level(raw, &byte_of).unwrap_or_else(|| raw.to_vec()),
                _ => raw.to_vec(),
            };
            tokens.push((bytes, control));
        }
        let strips = gguf_strips(&vocabulary);
        let mut always = Vec::new();
        let mut parsed = Vec::new();
        for (i, (bytes, _)) in tokens.iter().enumerate() {
            if bytes.is_empty() || !matches!(kind(i), CONTROL | UNKNOWN | USER_DEFINED) {
                continue;
            }
            if kind(i) == USER_DEFINED {
                always.push((bytes.clone(), i as u32, strips(i)));
            }
            parsed.push((bytes.clone(), i as u32, strips(i)));
        }
        let normal: Vec<usize> = (0..count)
            .filter(|&i| !matches!(kind(i), CONTROL | UNKNOWN | USER_DEFINED | UNUSED))
            .collect();
        let unknown = (0..count).find(|&i| kind(i) == UNKNOWN);
        let definition = if byte_level {
            byte_level_definition(&vocabulary, &tokens, &normal)?
        } else {
            sentencepiece_definition(&vocabulary, &tokens, &normal, unknown)?
        };
        if !byte_level {
            for (bytes, control) in tokens.iter_mut() {
                if !*control {
                    *bytes = spaces(bytes);
                }
            }
        }
        Ok(Tokenizer {
            encoder: Kitoken::from_definition(definition).map_err(|e| e.to_string())?,
            tokens: tokens.into_iter().map(Some).collect(),
            always: Specials::new(&always)?,
            parsed: Specials::new(&parsed)?,
            space_prefix: !byte_level && vocabulary.add_space_prefix,
        })
    }

    pub fn from_json(data: &[u8]) -> Result<Self, String> {
        let mut definition =
            convert_tokenizers(data).map_err(|e| format!("tokenizer.json: {e}"))?;
        let metaspace = definition.config.decoding.iter().any(|step| {
            matches!(step, Decoding::Replace { replacement, .. } if replacement == " ")
        });
        let mut tokens: Vec<Option<(Vec<u8>, bool)>> = Vec::new();
        let mut put = |id: u32, bytes: Vec<u8>, control: bool| {
            let index = id as usize;
            if index >= tokens.len() {
                tokens.resize(index + 1, None);
            }
            tokens[index] = Some((bytes, control));
        };
        let strips = json_strips(data)?;
        let limit = 1 << 22;
        for token in definition.model.vocab() {
            if token.id >= limit {
                return Err(format!("tokenizer.json: token id {} is out of range", token.id));
            }
            let bytes = if metaspace { spaces(&token.bytes) } else { token.bytes.clone() };
            put(token.id, bytes, false);
        }
        let mut always = Vec::new();
        let mut parsed = Vec::new();
        for special in &definition.specials {
            if special.id >= limit {
                return Err(format!("tokenizer.json: token id {} is out of range", special.id));
            }
            let plain = special.kind == SpecialTokenKind::Priority;
            put(special.id, special.bytes.clone(), !plain);
            if special.bytes.is_empty() {
                continue;
            }
            let strips = strips.get(&special.id).copied().unwrap_or_default();
            if plain {
                always.push((special.bytes.clone(), special.id, strips));
            }
            parsed.push((special.bytes.clone(), special.id, strips));
        }
        // The unknown token stays, for characters that nothing else covers.
        definition.specials.retain(|special| special.kind == SpecialTokenKind::Unknown);
        Ok(Tokenizer {
            encoder: Kitoken::from_definition(definition).map_err(|e| e.to_string())?,
            tokens: tokens.into_iter().collect(),
            always: Specials::new(&always)?,
            parsed: Specials::new(&parsed)?,
            space_prefix: false,
        })
    }

    /// Tokens beyond the pieces, and pieces that mean something else, come as a JSON object in the manner of tokenizer_config.json's
    /// added_tokens_decoder: {"32000": {"content": "<|im_start|>", "special": true}}.
    pub fn from_sentencepiece(data: &[u8], added: &[u8]) -> Result<Self, String> {
        let mut model = sentencepiece::read(data).map_err(|e| format!("tokenizer.model: {e}"))?;
        let added: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(added).map_err(|e| format!("added tokens: {e}"))?;
        let mut strips = HashMap::new();
        for (key, token) in &added {
            let id = key.parse::<usize>().ok().filter(|&id| id < model.pieces.len() + (1 << 16));
            let id = id.ok_or_else(|| format!("added tokens: \"{key}\" is no id near those of tokenizer.model"))?;
            let content = token.get("content").and_then(serde_json::Value::as_str);
            let content = content.ok_or_else(|| format!("added tokens: {key}.content is missing or no string"))?;
            while model.pieces.len() <= id {
                model.pieces.push(Vec::new());
                model.scores.push(0.0);
                model.types.push(UNUSED);
            }
            model.pieces[id] = content.as_bytes().to_vec();
            let flag = |name: &str| token.get(name).and_then(serde_json::Value::as_bool).unwrap_or(false);
            strips.insert(id as u32, Strips { left: flag("lstrip"), right: flag("rstrip") });
            if model.types[id] != UNKNOWN {
                let special = flag("special");
                model.types[id] = if special { CONTROL } else { USER_DEFINED };
            }
        }
        Self::from_gguf(GgufVocabulary {
            model: "llama",
            pre: "",
            tokens: model.pieces.iter().map(Vec::as_slice).collect(),
            scores: &model.scores,
            types: &model.types,
            merges: Vec::new(),
            add_space_prefix: model.add_dummy_prefix,
            strips,
        })
    }

    pub fn from_tekken(data: &[u8]) -> Result<Self, String> {
        let file = tekken::read(data).map_err(|e| format!("tekken.json: {e}"))?;
        let mut config = Configuration::default();
        config.fallback = vec![Fallback::Skip];
        let split = pattern(&file.pattern, SplitBehavior::Isolate);
        config.split.push(split.map_err(|e| format!("tekken.json: config.pattern: {e}"))?);
        let first = file.specials.len();
        let ranked = file.tokens.iter().enumerate();
        let vocab = ranked.map(|(rank, bytes)| Token { id: (first + rank) as u32, bytes: bytes.clone() }).collect();
        let definition = definition(Model::BytePair { vocab, chars: false }, Vec::new(), config);
        let spelled = (0u32..).zip(&file.specials).filter(|(_, special)| !special.bytes.is_empty());
        let spelled: Vec<_> = spelled.map(|(id, special)| (special.bytes.clone(), id, Strips::default())).collect();
        let specials = file.specials.into_iter().map(|special| Some((special.bytes, special.control)));
        Ok(Tokenizer {
            encoder: Kitoken::from_definition(definition).map_err(|e| format!("tekken.json: {e}"))?,
            tokens: specials.chain(file.tokens.into_iter().map(|bytes| Some((bytes, false)))).collect(),
            always: None,
            parsed: Specials::new(&spelled)?,
            space_prefix: false,
        })
    }

    pub fn size(&self) -> usize {
        self.tokens.size()
    }

    pub fn token(&self, id: u32) -> Option<(&[u8], bool)> {
        self.tokens.get(id as usize)
    }

    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, String> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut begin = 0;
        let specials = if parse_special { &self.parsed } else { &self.always };
        if let Some(specials) = specials {
            for found in specials.matcher.find_iter(text) {
                if found.start() < begin {
                    continue; // inside the white space that the token before took
                }
                let strips = specials.strips[found.pattern().as_usize()];
                let before = &text[begin..found.start()];
                self.encode_plain(if strips.left { before.trim_end() } else { before }, &mut ids)?;
                ids.push(specials.ids[found.pattern().as_usize()]);
                begin = found.end();
                if strips.right {
                    begin = text.len() - text[begin..].trim_start().len();
                }
            }
        }
        self.encode_plain(&text[begin..], &mut ids)?;
        Ok(ids)
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), String> {
        if text.is_empty() {
            return Ok(());
        }
        let none: &[SpecialTokenKind] = &[];
        let encoded = if self.space_prefix {
            self.encoder.encode(format!(" {text}"), none)
        } else {
            self.encoder.encode(text, none)
        };
        ids.extend(encoded.map_err(|e| e.to_string())?);
        Ok(())
    }
}

/// Those that the vocabulary came with, or those of Phi 3's tokenizer.json, whose GGUF files are told by their roles (llama.cpp
/// tells them by general.name): its chat template puts a line break after each of its tokens, which they take.
fn gguf_strips(vocabulary: &GgufVocabulary) -> impl Fn(usize) -> Strips {
    let roles: [&[u8]; 4] = [b"<|system|>", b"<|user|>", b"<|assistant|>", b"<|end|>"];
    let phi3 = vocabulary.model == "llama" && roles.iter().all(|role| vocabulary.tokens.contains(role));
    let plain: [&[u8]; 3] = [b"<unk>", b"<s>", b"<|endoftext|>"];
    let plain: Vec<usize> = (0..vocabulary.tokens.len()).filter(|&i| plain.contains(&vocabulary.tokens[i])).collect();
    let known = vocabulary.strips.clone();
    move |i| {
        let default = Strips { left: false, right: phi3 && !plain.contains(&i) };
        known.get(&(i as u32)).copied().unwrap_or(default)
    }
}

#[derive(Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

fn json_strips(data: &[u8]) -> Result<HashMap<u32, Strips>, String> {
    let file: AddedTokens =
        serde_json::from_slice(data).map_err(|e| format!("tokenizer.json: added_tokens: {e}"))?;
    let strips = file.added_tokens.iter();
    Ok(strips.map(|token| (token.id, Strips { left: token.lstrip, right: token.rstrip })).collect())
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

fn spaces(bytes: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.replace('\u{2581}', " ").into_bytes(),
        Err(_) => bytes.to_vec(),
    }
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

fn pattern(regex: &str, behavior: SplitBehavior) -> Result<Split, String> {
    let regex = Regex::new(regex).map_err(|e| e.to_string())?;
    Ok(Split::Pattern { pattern: regex.into(), behavior })
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
    let mut rank: HashMap<Vec<u8>, usize> = HashMap::with_capacity(vocabulary.merges.len());
    for (i, merge) in vocabulary.merges.iter().enumerate() {
        let space = merge.iter().skip(1).position(|&b| b == b' ').map(|p| p + 1);
        let space =
            space.ok_or_else(|| format!("tokenizer.ggml.merges[{i}] is not a pair of tokens"))?;
        let joined = [&merge[..space], &merge[space + 1..]].concat();
        rank.entry(joined).or_insert(i);
    }
    let mut order: Vec<(usize, usize)> = normal
        .iter()
        .map(|&i| (rank.get(vocabulary.tokens[i]).copied().unwrap_or(usize::MAX), i))
        .collect();
    order.sort();
    let mut config = Configuration::default();
    config.fallback = vec![Fallback::Skip];
    for split in splits(vocabulary.pre)? {
        config.split.push(pattern(split, SplitBehavior::Isolate)?);
    }
    let ordered = unique(order.iter().map(|&(_, i)| i), tokens);
    Ok(definition(Model::BytePair { vocab: ordered, chars: false }, Vec::new(), config))
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

/// Tokens in rank order; of two with the same bytes the first stays.
fn unique(order: impl Iterator<Item = usize>, tokens: &[(Vec<u8>, bool)]) -> Vec<Token> {
    let mut seen = std::collections::HashSet::new();
    order
        .filter(|&i| !tokens[i].0.is_empty() && seen.insert(tokens[i].0.as_slice()))
        .map(|i| Token { id: i as u32, bytes: tokens[i].0.clone() })
        .collect()
}

fn definition(model: Model, specials: Vec<SpecialToken>, config: Configuration) -> Definition {
    let meta = Metadata { source: "gguf".to_string(), ..Metadata::default() };
    Definition { meta, model, specials, config }
}
