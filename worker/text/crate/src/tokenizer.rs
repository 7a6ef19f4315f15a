// SPDX-License-Identifier: Apache-2.0
//! Tokenizers from the vocabulary inside a GGUF file and from Hugging Face's tokenizer.json, both
//! run by kitoken. Special tokens are cut out of the text here, so that whether their spelling in
//! the text counts is decided per call.

use std::collections::HashMap;

use crate::gguf::{is_special, GgufVocabulary, CONTROL, UNKNOWN, UNUSED, USER_DEFINED};
use crate::token_table::TokenTable;
use crate::{sentencepiece, tekken};
use aho_corasick::{AhoCorasick, MatchKind};
use kitoken::convert::convert_tokenizers;
use kitoken::{
    Configuration, Decoding, Definition, Fallback, Kitoken, Metadata, Model, Processing, Regex,
    SpecialToken, SpecialTokenKind, Split, SplitBehavior, Token,
};
use serde::Deserialize;

/// Whether a special token takes the white space before and after it, as an added token of tokenizer.json says.
#[derive(Clone, Copy, Default)]
pub struct Strips {
    pub left: bool,
    pub right: bool,
}

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
        let byte_level = vocabulary.is_byte_level()?;
        let kinds = vocabulary.kinds();
        let mut tokens = vocabulary.token_bytes(&kinds)?;
        let strips = vocabulary.strips_of();
        let mut always = Vec::new();
        let mut parsed = Vec::new();
        for (i, (bytes, _)) in tokens.iter().enumerate() {
            if bytes.is_empty() || !is_special(kinds[i]) {
                continue;
            }
            if kinds[i] == USER_DEFINED {
                always.push((bytes.clone(), i as u32, strips(i)));
            }
            parsed.push((bytes.clone(), i as u32, strips(i)));
        }
        let definition = vocabulary.definition(&kinds, &tokens)?;
        if definition.model.vocab().is_empty() {
            return Err("tokenizer.ggml.tokens has no token of text: tokenizer.ggml.token_type calls none normal".to_string());
        }
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
        let added = added_tokens(data, &definition)?;
        if definition.model.vocab().is_empty() {
            return Err("tokenizer.json: model.vocab is empty".to_string());
        }
        // How a text was cut and filled up when the tokenizer was saved is no part of it.
        definition.config.processing.retain(|step| matches!(step, Processing::Collapse { .. }));
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
            let strips = added.get(&special.id).copied().unwrap_or_default();
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
            unique_tokens: false,
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

#[derive(Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

/// What each of them strips, by id. Where two claims contradict each other kitoken would give a token another id.
fn added_tokens(data: &[u8], definition: &Definition) -> Result<HashMap<u32, Strips>, String> {
    let file: AddedTokens =
        serde_json::from_slice(data).map_err(|e| format!("tokenizer.json: added_tokens: {e}"))?;
    let mut ids: HashMap<&[u8], u32> = HashMap::new();
    let mut contents: HashMap<u32, &str> = HashMap::new();
    for AddedToken { id, content, .. } in &file.added_tokens {
        if let Some(other) = ids.insert(content.as_bytes(), *id).filter(|other| other != id) {
            return Err(format!("tokenizer.json: added_tokens gives '{content}' the ids {other} and {id}"));
        }
        if let Some(other) = contents.insert(*id, content).filter(|other| other != content) {
            return Err(format!("tokenizer.json: added_tokens gives the id {id} to '{other}' and '{content}'"));
        }
    }
    for special in &definition.specials {
        if let Some(id) = ids.get(special.bytes.as_slice()).filter(|id| **id != special.id) {
            let content = contents[id];
            return Err(format!(
                "tokenizer.json: added_tokens gives '{content}' the id {id}, which model.vocab gives to another token"
            ));
        }
    }
    let strips = file.added_tokens.iter();
    Ok(strips.map(|token| (token.id, Strips { left: token.lstrip, right: token.rstrip })).collect())
}

fn spaces(bytes: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.replace('\u{2581}', " ").into_bytes(),
        Err(_) => bytes.to_vec(),
    }
}

pub fn pattern(regex: &str, behavior: SplitBehavior) -> Result<Split, String> {
    let regex = Regex::new(regex).map_err(|e| e.to_string())?;
    Ok(Split::Pattern { pattern: regex.into(), behavior })
}

pub fn definition(model: Model, specials: Vec<SpecialToken>, config: Configuration) -> Definition {
    let meta = Metadata { source: "gguf".to_string(), ..Metadata::default() };
    Definition { meta, model, specials, config }
}
