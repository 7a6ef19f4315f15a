// SPDX-License-Identifier: Apache-2.0
//! Reads Mistral's tekken.json: byte-level BPE whose ranks are the order of the vocabulary, after a block of special tokens. As
//! mistral-common reads it: ids of text are ranks after the special tokens, entries beyond config.default_vocab_size are cut off,
//! and special tokens that the file does not name are <SPECIAL_n>.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{Map, Value};

/// Of files before version 8, which do not list theirs.
const OLD_SPECIALS: [&str; 20] = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
];
const MAX_TOKENS: u64 = 1 << 22;
const MAX_SPECIALS: u64 = 1 << 16;

pub struct Special {
    pub bytes: Vec<u8>,
    pub control: bool,
}

pub struct Tekken {
    pub pattern: String,
    pub specials: Vec<Special>, // ids 0 and on
    pub tokens: Vec<Vec<u8>>,   // ids after those, in the order of their ranks
}

fn count(config: &Map<String, Value>, key: &str, most: u64) -> Result<usize, String> {
    match config.get(key).and_then(Value::as_u64) {
        Some(value) if value <= most => Ok(value as usize),
        _ => Err(format!("config.{key} is missing, or no number up to {most}")),
    }
}

/// "v3" is 3.
fn version(config: &Map<String, Value>) -> Result<u32, String> {
    let text = config.get("version").and_then(Value::as_str).unwrap_or("");
    let number = text.strip_prefix('v').and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| format!("config.version is \"{text}\", not v and a number"))
}

fn specials(file: &Map<String, Value>, version: u32, count: usize) -> Result<Vec<Special>, String> {
    let mut slots: Vec<Option<Special>> = Vec::new();
    slots.resize_with(count, || None);
    let mut put = |rank: usize, text: &str, control: bool| {
        let slot = slots
            .get_mut(rank)
            .ok_or_else(|| format!("special_tokens: rank {rank} is not below config.default_num_special_tokens, {count}"))?;
        if slot.is_some() {
            return Err(format!("special_tokens: rank {rank} appears twice"));
        }
        *slot = Some(Special { bytes: text.as_bytes().to_vec(), control });
        Ok(())
    };
    match file.get("special_tokens") {
        None | Some(Value::Null) if version <= 7 => {
            for (rank, text) in OLD_SPECIALS.iter().enumerate() {
                put(rank, text, true)?;
            }
        }
        Some(Value::Array(list)) => {
            for (i, item) in list.iter().enumerate() {
                let rank = item.get("rank").and_then(Value::as_u64).filter(|&rank| rank < MAX_TOKENS);
                let rank = rank.ok_or_else(|| format!("special_tokens[{i}].rank is missing, or no such number"))?;
                let text = item.get("token_str").and_then(Value::as_str);
                let text = text.ok_or_else(|| format!("special_tokens[{i}].token_str is missing, or no string"))?;
                put(rank as usize, text, item.get("is_control").and_then(Value::as_bool).unwrap_or(true))?;
            }
        }
        _ => return Err("special_tokens is missing or no array; download the file again".to_string()),
    }
    let named = |(rank, slot): (usize, Option<Special>)| {
        slot.unwrap_or_else(|| Special { bytes: format!("<SPECIAL_{rank}>").into_bytes(), control: true })
    };
    Ok(slots.into_iter().enumerate().map(named).collect())
}

fn tokens(file: &Map<String, Value>, count: usize) -> Result<Vec<Vec<u8>>, String> {
    let list = file.get("vocab").and_then(Value::as_array).ok_or("vocab is missing or no array")?;
    if list.len() < count {
        return Err(format!("vocab has {} entries, but config asks for {count}", list.len()));
    }
    let mut tokens = Vec::with_capacity(count);
    let mut seen = std::collections::HashSet::with_capacity(count);
    for (i, item) in list.iter().take(count).enumerate() {
        if item.get("rank").and_then(Value::as_u64) != Some(i as u64) {
            return Err(format!("vocab[{i}].rank is not {i}"));
        }
        let text = item.get("token_bytes").and_then(Value::as_str).unwrap_or("");
        let bytes = STANDARD.decode(text).map_err(|e| format!("vocab[{i}].token_bytes: {e}"))?;
        if bytes.is_empty() || (i < 256 && bytes != [i as u8]) || !seen.insert(bytes.clone()) {
            return Err(format!("vocab[{i}].token_bytes is empty, not byte {i}, or there already"));
        }
        tokens.push(bytes);
    }
    Ok(tokens)
}

pub fn read(data: &[u8]) -> Result<Tekken, String> {
    let file: Map<String, Value> = serde_json::from_slice(data).map_err(|e| format!("not a JSON object: {e}"))?;
    let config = file.get("config").and_then(Value::as_object).ok_or("config is missing or no object")?;
    let pattern = config.get("pattern").and_then(Value::as_str).ok_or("config.pattern is missing or no string")?;
    let all = count(config, "default_vocab_size", MAX_TOKENS)?;
    let special_count = count(config, "default_num_special_tokens", MAX_SPECIALS)?;
    if special_count + 256 > all {
        return Err(format!("config.default_vocab_size is {all}, too few for {special_count} special tokens and 256 bytes"));
    }
    Ok(Tekken {
        pattern: pattern.to_string(),
        specials: specials(&file, version(config)?, special_count)?,
        tokens: tokens(&file, all - special_count)?,
    })
}
