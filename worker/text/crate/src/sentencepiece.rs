// SPDX-License-Identifier: Apache-2.0
//! Reads SentencePiece's tokenizer.model: a protobuf message (sentencepiece_model.proto) with pieces, scores and types, which are
//! those of GGUF. Read are the fields that a BPE model of a language model needs; other kinds are refused by name.

/// Fields of ModelProto.
const PIECES: u64 = 1;
const TRAINER: u64 = 2;
const NORMALIZER: u64 = 3;
const BPE: u64 = 2;
const MAX_PIECES: usize = 1 << 22;

pub struct SentencePiece {
    pub pieces: Vec<Vec<u8>>,
    pub scores: Vec<f32>,
    pub types: Vec<i32>,
    pub add_dummy_prefix: bool,
}

enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// Walks the fields of one message.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let count = usize::try_from(count).ok().filter(|&count| count <= self.0.len())?;
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        Some(taken)
    }

    /// The next field; an error when the bytes end inside it.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let read = |message: &mut Self| {
            let key = message.varint()?;
            let field = match key & 7 {
                0 => Field::Number(message.varint()?),
                1 => Field::Bytes(message.take(8)?),
                2 => {
                    let length = message.varint()?;
                    Field::Bytes(message.take(length)?)
                }
                5 => Field::Float(f32::from_le_bytes(message.take(4)?.try_into().ok()?)),
                _ => return None,
            };
            Some((key >> 3, field))
        };
        read(self).map(Some).ok_or_else(|| "the file is damaged or no SentencePiece model: download it again".to_string())
    }
}

fn read_piece(data: &[u8], model: &mut SentencePiece) -> Result<(), String> {
    let (mut piece, mut score, mut kind): (&[u8], f32, i32) = (&[], 0.0, 1);
    let mut message = Message(data);
    while let Some((number, field)) = message.next()? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => piece = bytes,
            (2, Field::Float(value)) => score = value,
            (3, Field::Number(value)) => kind = i32::try_from(value).unwrap_or(0),
            _ => {}
        }
    }
    let index = model.pieces.len();
    if std::str::from_utf8(piece).is_err() || !(1..=6).contains(&kind) || index == MAX_PIECES {
        return Err(format!("pieces[{index}] is no text, of type {kind} (1 to 6), or one of too many: download the file again"));
    }
    model.pieces.push(piece.to_vec());
    model.scores.push(score);
    model.types.push(kind);
    Ok(())
}

fn check_trainer(data: &[u8]) -> Result<(), String> {
    let mut message = Message(data);
    let (mut kind, mut suffix) = (1, false);
    while let Some((number, field)) = message.next()? {
        match (number, field) {
            (3, Field::Number(value)) => kind = value,
            (24, Field::Number(value)) => suffix = value != 0,
            _ => {}
        }
    }
    if kind != BPE || suffix {
        let name = match kind {
            1 => "unigram",
            3 => "word",
            4 => "char",
            _ => "BPE with spaces as suffixes",
        };
        return Err(format!("trainer_spec.model_type: {name} is not served, only BPE: save the tokenizer as tokenizer.json with transformers"));
    }
    Ok(())
}

/// Returns add_dummy_prefix.
fn read_normalizer(data: &[u8]) -> Result<bool, String> {
    let mut message = Message(data);
    let (mut charsmap, mut prefix, mut collapses, mut escapes): (&[u8], _, _, _) = (&[], true, true, true);
    while let Some((number, field)) = message.next()? {
        match (number, field) {
            (2, Field::Bytes(bytes)) => charsmap = bytes,
            (3, Field::Number(value)) => prefix = value != 0,
            (4, Field::Number(value)) => collapses = value != 0,
            (5, Field::Number(value)) => escapes = value != 0,
            _ => {}
        }
    }
    let refused = [(!charsmap.is_empty(), "precompiled_charsmap"), (collapses, "remove_extra_whitespaces"), (!escapes, "escape_whitespaces")];
    match refused.iter().find(|(is_set, _)| *is_set) {
        Some((_, name)) => Err(format!("normalizer_spec.{name}: a normalizer that changes text is not served: save the tokenizer as tokenizer.json with transformers")),
        None => Ok(prefix),
    }
}

pub fn read(data: &[u8]) -> Result<SentencePiece, String> {
    let mut model = SentencePiece { pieces: Vec::new(), scores: Vec::new(), types: Vec::new(), add_dummy_prefix: true };
    let (mut trained, mut normalized) = (false, false);
    let mut message = Message(data);
    while let Some((number, field)) = message.next()? {
        match (number, field) {
            (PIECES, Field::Bytes(bytes)) => read_piece(bytes, &mut model)?,
            (TRAINER, Field::Bytes(bytes)) => {
                check_trainer(bytes)?;
                trained = true;
            }
            (NORMALIZER, Field::Bytes(bytes)) => {
                model.add_dummy_prefix = read_normalizer(bytes)?;
                normalized = true;
            }
            _ => {}
        }
    }
    if model.pieces.is_empty() || !trained || !normalized {
        return Err("pieces, trainer_spec or normalizer_spec is missing: the file is damaged or no SentencePiece model".to_string());
    }
    Ok(model)
}
