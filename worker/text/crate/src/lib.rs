// SPDX-License-Identifier: Apache-2.0
//! The C ABI of worker/text/abi.h: tokenizers and chat templates. Every function catches panics,
//! checks its input for UTF-8 and returns an error message instead of aborting.

mod endings;
mod gguf;
mod sentencepiece;
mod tekken;
mod token_table;
mod template;
mod tokenizer;

use std::collections::HashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;

use gguf::GgufVocabulary;
use template::ChatTemplate;
use tokenizer::Tokenizer;

/// Bytes owned by Rust; freed by `rempart_text_free`. `failed` tells a message from a result.
#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    length: usize,
    failed: bool,
}

impl Buffer {
    fn new(bytes: Vec<u8>, failed: bool) -> Self {
        let boxed = bytes.into_boxed_slice();
        let length = boxed.len();
        Buffer { data: Box::into_raw(boxed) as *mut u8, length, failed }
    }
}

/// A run of strings laid end to end: string i is bytes[offsets[i]..offsets[i + 1]].
#[repr(C)]
pub struct Strings {
    bytes: *const u8,
    offsets: *const u64,
    count: usize,
}

#[repr(C)]
pub struct Vocabulary {
    model: *const u8,
    model_length: usize,
    pre: *const u8,
    pre_length: usize,
    tokens: Strings,
    merges: Strings,
    scores: *const f32,
    scores_count: usize,
    types: *const i32,
    types_count: usize,
    add_space_prefix: bool,
}

/// # Safety
/// `data` must be readable for `length` bytes, or `length` must be 0.
unsafe fn bytes<'a, T>(data: *const T, length: usize) -> &'a [T] {
    if length == 0 {
        &[]
    } else {
        slice::from_raw_parts(data, length)
    }
}

unsafe fn text<'a>(data: *const u8, length: usize) -> Result<&'a str, String> {
    std::str::from_utf8(bytes(data, length))
        .map_err(|e| format!("the text is not valid UTF-8 at byte {}", e.valid_up_to()))
}

unsafe fn name<'a>(key: &str, data: *const u8, length: usize) -> Result<&'a str, String> {
    std::str::from_utf8(bytes(data, length)).map_err(|_| format!("{key} is not UTF-8"))
}

unsafe fn strings<'a>(list: &Strings) -> Result<Vec<&'a [u8]>, String> {
    if list.count == 0 {
        return Ok(Vec::new());
    }
    let offsets = bytes(list.offsets, list.count + 1);
    if offsets.windows(2).any(|pair| pair[1] < pair[0]) {
        return Err("string offsets run backwards".to_string());
    }
    let all = bytes(list.bytes, offsets[list.count] as usize);
    Ok(offsets.windows(2).map(|pair| &all[pair[0] as usize..pair[1] as usize]).collect())
}

/// Runs `work`; a failure or a panic ends in `error` and a null pointer.
fn guarded<T>(error: &mut Buffer, work: impl FnOnce() -> Result<T, String>) -> *mut T {
    let outcome = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the tokenizer or template library failed".to_string()));
    match outcome {
        Ok(value) => {
            *error = Buffer::new(Vec::new(), false);
            Box::into_raw(Box::new(value))
        }
        Err(message) => {
            *error = Buffer::new(message.into_bytes(), true);
            std::ptr::null_mut()
        }
    }
}

fn guarded_bytes(work: impl FnOnce() -> Result<Vec<u8>, String>) -> Buffer {
    let outcome = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the text is too irregular for this tokenizer".to_string()));
    match outcome {
        Ok(result) => Buffer::new(result, false),
        Err(message) => Buffer::new(message.into_bytes(), true),
    }
}

/// # Safety
/// `buffer` must come from this library and not be used again.
#[no_mangle]
pub unsafe extern "C" fn rempart_text_free(buffer: Buffer) {
    if !buffer.data.is_null() {
        drop(Box::from_raw(slice::from_raw_parts_mut(buffer.data, buffer.length)));
    }
}

/// # Safety
/// The pointers of `vocabulary` must be readable for their counts.
#[no_mangle]
pub unsafe extern "C" fn rempart_tokenizer_from_gguf(
    vocabulary: &Vocabulary,
    error: &mut Buffer,
) -> *mut Tokenizer {
    guarded(error, || {
        Tokenizer::from_gguf(GgufVocabulary {
            model: name("tokenizer.ggml.model", vocabulary.model, vocabulary.model_length)?,
            pre: name("tokenizer.ggml.pre", vocabulary.pre, vocabulary.pre_length)?,
            tokens: strings(&vocabulary.tokens)?,
            scores: bytes(vocabulary.scores, vocabulary.scores_count),
            types: bytes(vocabulary.types, vocabulary.types_count),
            merges: strings(&vocabulary.merges)?,
            add_space_prefix: vocabulary.add_space_prefix,
            unique_tokens: true,
            strips: HashMap::new(),
        })
    })
}

/// # Safety
/// `data` must be readable for `length` bytes.
#[no_mangle]
pub unsafe extern "C" fn rempart_tokenizer_from_json(
    data: *const u8,
    length: usize,
    error: &mut Buffer,
) -> *mut Tokenizer {
    guarded(error, || Tokenizer::from_json(bytes(data, length)))
}

/// # Safety
/// `data` must be readable for `length` bytes.
#[no_mangle]
pub unsafe extern "C" fn rempart_tokenizer_from_tekken(
    data: *const u8,
    length: usize,
    error: &mut Buffer,
) -> *mut Tokenizer {
    guarded(error, || Tokenizer::from_tekken(bytes(data, length)))
}

/// # Safety
/// `data` must be readable for `length` bytes, and `added` for `added_length`.
#[no_mangle]
pub unsafe extern "C" fn rempart_tokenizer_from_sentencepiece(
    data: *const u8,
    length: usize,
    added: *const u8,
    added_length: usize,
    error: &mut Buffer,
) -> *mut Tokenizer {
    guarded(error, || {
        Tokenizer::from_sentencepiece(bytes(data, length), bytes(added, added_length))
    })
}

/// # Safety
/// `tokenizer` must come from this library and not be used again.
#[no_mangle]
pub unsafe extern "C" fn rempart_tokenizer_drop(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

#[no_mangle]
pub extern "C" fn rempart_tokenizer_size(tokenizer: &Tokenizer) -> usize {
    tokenizer.size()
}

/// The result holds 32-bit token ids in the machine's byte order.
///
/// # Safety
/// `data` must be readable for `length` bytes.
#[no_mangle]
pub unsafe extern "C" fn rempart_tokenizer_encode(
    tokenizer: &Tokenizer,
    data: *const u8,
    length: usize,
    parse_special: bool,
) -> Buffer {
    guarded_bytes(|| {
        let ids = tokenizer.encode(text(data, length)?, parse_special)?;
        Ok(ids.iter().flat_map(|id| id.to_ne_bytes()).collect())
    })
}

/// The bytes of one token; null when the id is unknown. They live as long as the tokenizer.
#[no_mangle]
pub extern "C" fn rempart_token_bytes(
    tokenizer: &Tokenizer,
    id: u32,
    length: &mut usize,
    special: &mut bool,
) -> *const u8 {
    match tokenizer.token(id) {
        Some((bytes, is_special)) => {
            *length = bytes.len();
            *special = is_special;
            bytes.as_ptr()
        }
        None => {
            *length = 0;
            *special = false;
            std::ptr::null()
        }
    }
}

/// # Safety
/// `data` must be readable for `length` bytes.
#[no_mangle]
pub unsafe extern "C" fn rempart_ends_by_name(data: *const u8, length: usize) -> bool {
    endings::ends_by_name(bytes(data, length))
}

/// # Safety
/// `data` must be readable for `length` bytes.
#[no_mangle]
pub unsafe extern "C" fn rempart_template_new(
    data: *const u8,
    length: usize,
    error: &mut Buffer,
) -> *mut ChatTemplate {
    guarded(error, || ChatTemplate::new(text(data, length)?))
}

/// # Safety
/// `template` must come from this library and not be used again.
#[no_mangle]
pub unsafe extern "C" fn rempart_template_drop(template: *mut ChatTemplate) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

/// Renders with the variables of a JSON object.
///
/// # Safety
/// `data` must be readable for `length` bytes.
#[no_mangle]
pub unsafe extern "C" fn rempart_template_render(
    template: &ChatTemplate,
    data: *const u8,
    length: usize,
    max_output: usize,
    unix_seconds: i64,
) -> Buffer {
    guarded_bytes(|| template.render(text(data, length)?, max_output, unix_seconds))
}
