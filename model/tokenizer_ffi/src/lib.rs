//! Hugging Face tokenizers and chat templates behind a small C ABI; see ../tokenizer_ffi.h.
//!
//! Every entry point catches panics. Bytes and id lists that the library hands out are freed by it.

mod jinja;
mod limits;
mod template;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;

use template::{ChatTemplate, RenderError};
use tokenizers::{AddedToken, Encoding, Tokenizer};

#[global_allocator]
static ALLOCATOR: limits::MeteredAllocator = limits::MeteredAllocator;

pub const OK: i32 = 0;
pub const INVALID: i32 = 1;
pub const EXHAUSTED: i32 = 2;
pub const PANICKED: i32 = 3;

#[repr(C)]
pub struct Slice {
    data: *const u8,
    size: usize,
}

impl Slice {
    unsafe fn bytes<'a>(&self) -> &'a [u8] {
        if self.size == 0 {
            return &[];
        }
        slice::from_raw_parts(self.data, self.size)
    }

    unsafe fn text<'a>(&self) -> Result<&'a str, Failure> {
        std::str::from_utf8(self.bytes()).map_err(|error| Failure::invalid(format!("not valid UTF-8: {error}")))
    }
}

#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    size: usize,
}

impl Bytes {
    fn from_vec(bytes: Vec<u8>) -> Bytes {
        let mut boxed = bytes.into_boxed_slice();
        let result = Bytes { data: boxed.as_mut_ptr(), size: boxed.len() };
        std::mem::forget(boxed);
        result
    }
}

#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: usize,
}

impl Ids {
    fn from_slice(ids: &[u32]) -> Ids {
        let mut boxed: Box<[u32]> = ids.into();
        let result = Ids { data: boxed.as_mut_ptr(), size: boxed.len() };
        std::mem::forget(boxed);
        result
    }
}

pub struct Failure {
    code: i32,
    message: String,
}

impl Failure {
    fn invalid(message: impl ToString) -> Failure {
        Failure { code: INVALID, message: message.to_string() }
    }
}

impl From<RenderError> for Failure {
    fn from(error: RenderError) -> Failure {
        match error {
            RenderError::Invalid(message) => Failure { code: INVALID, message },
            RenderError::Exhausted(message) => Failure { code: EXHAUSTED, message },
        }
    }
}

/// Runs `body`; on failure writes the message to `error` and returns its code.
unsafe fn guarded(error: *mut Bytes, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure { code: PANICKED, message: limits::panic_message(panic.as_ref()) },
    };
    error.write(Bytes::from_vec(failure.message.into_bytes()));
    failure.code
}

/// [{"content", "single_word", "lstrip", "rstrip", "normalized", "special"}]; normalized is !special where it is not given.
fn read_added_tokens(json: &str) -> Result<Vec<AddedToken>, Failure> {
    let list: Vec<serde_json::Value> = serde_json::from_str(json).map_err(Failure::invalid)?;
    let flag = |token: &serde_json::Value, name: &str, default: bool| token[name].as_bool().unwrap_or(default);
    Ok(list
        .iter()
        .map(|token| {
            let special = flag(token, "special", false);
            AddedToken::from(token["content"].as_str().unwrap_or_default(), special)
                .single_word(flag(token, "single_word", false))
                .lstrip(flag(token, "lstrip", false))
                .rstrip(flag(token, "rstrip", false))
                .normalized(flag(token, "normalized", !special))
        })
        .collect())
}

/// # Safety
/// `json` and `added` are readable; `tokenizer` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_new(
    json: Slice,
    added: Slice,
    split_special_tokens: bool,
    tokenizer: *mut *mut Tokenizer,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let mut loaded = Tokenizer::from_bytes(json.bytes()).map_err(Failure::invalid)?;
        // As transformers does before each call: what the file says about them is for batches of one length.
        loaded.with_truncation(None).map_err(Failure::invalid)?;
        loaded.with_padding(None);
        // What is there already keeps its place.
        let known: Vec<AddedToken> = loaded.get_added_tokens_decoder().into_values().collect();
        let mut new = read_added_tokens(added.text()?)?;
        new.retain(|token| !known.contains(token));
        loaded.add_tokens(new).map_err(Failure::invalid)?;
        loaded.set_encode_special_tokens(split_special_tokens);
        tokenizer.write(Box::into_raw(Box::new(loaded)));
        Ok(())
    })
}

/// Which of `tokens` the tokenizer has as added tokens: those are left as they are, whatever their flags. One that is
/// in the vocabulary becomes an added token under its id. As transformers' add_tokens.
///
/// # Safety
/// `tokenizer` is not used by another thread; `tokens` is readable; `ids`, `known` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_add(
    tokenizer: *mut Tokenizer,
    tokens: Slice,
    ids: *mut Ids,
    known: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let tokenizer = &mut *tokenizer;
        let tokens = read_added_tokens(tokens.text()?)?;
        let mut all_ids = Vec::with_capacity(tokens.len());
        let mut all_known = Vec::with_capacity(tokens.len());
        for token in tokens {
            let content = token.content.clone();
            let added = tokenizer.get_added_tokens_decoder().values().any(|other| other.content == content);
            all_known.push(u32::from(tokenizer.token_to_id(&content).is_some()));
            if !added {
                tokenizer.add_tokens([token]).map_err(Failure::invalid)?;
            }
            let id = tokenizer.token_to_id(&content);
            all_ids.push(id.ok_or_else(|| Failure::invalid(format!("{content:?} cannot be a token")))?);
        }
        ids.write(Ids::from_slice(&all_ids));
        known.write(Ids::from_slice(&all_known));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is valid; `ids` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_all_ids(tokenizer: *const Tokenizer, ids: *mut Ids, error: *mut Bytes) -> i32 {
    guarded(error, || {
        let mut all: Vec<u32> = (*tokenizer).get_vocab(true).into_values().collect();
        all.sort_unstable();
        all.dedup();
        ids.write(Ids::from_slice(&all));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is valid; `json` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_to_json(
    tokenizer: *const Tokenizer,
    json: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let text = (*tokenizer).to_string(true).map_err(Failure::invalid)?;
        json.write(Bytes::from_vec(text.into_bytes()));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` came from `retort_tokenizer_new` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_free(tokenizer: *mut Tokenizer) {
    drop(Box::from_raw(tokenizer));
}

/// # Safety
/// `texts` holds `count` slices; `ids` has room for `count` lists.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_encode(
    tokenizer: *const Tokenizer,
    texts: *const Slice,
    count: usize,
    add_special_tokens: bool,
    ids: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let tokenizer = &*tokenizer;
        let mut inputs = Vec::with_capacity(count);
        for text in slice::from_raw_parts(texts, count) {
            inputs.push(text.text()?);
        }
        let encodings = if let [input] = inputs[..] {
            vec![tokenizer.encode_fast(input, add_special_tokens).map_err(Failure::invalid)?]
        } else {
            tokenizer.encode_batch_fast(inputs, add_special_tokens).map_err(Failure::invalid)?
        };
        for (index, encoding) in encodings.iter().enumerate() {
            ids.add(index).write(Ids::from_slice(encoding.get_ids()));
        }
        Ok(())
    })
}

/// As transformers' return_assistant_tokens_mask: marks the tokens of each span of characters.
fn mark(encoding: &Encoding, spans: &[u32], mask: &mut [u32]) -> Result<(), Failure> {
    for span in spans.chunks_exact(2) {
        let Some(last) = span[1].checked_sub(1) else {
            return Err(Failure::invalid("an empty {% generation %} block at the beginning of the text"));
        };
        let Some(start) = encoding.char_to_token(span[0] as usize, 0) else { break };
        let end = match encoding.char_to_token(last as usize, 0) {
            Some(end) if end > 0 => end + 1,
            _ => mask.len(),
        };
        if start < end {
            mask[start..end].fill(1);
        }
    }
    Ok(())
}

/// # Safety
/// `spans` holds `count` pairs of characters; `ids` and `mask` are writable.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_encode_marked(
    tokenizer: *const Tokenizer,
    text: Slice,
    add_special_tokens: bool,
    spans: *const u32,
    count: usize,
    ids: *mut Ids,
    mask: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let encoding = (*tokenizer).encode_char_offsets(text.text()?, add_special_tokens).map_err(Failure::invalid)?;
        let mut marked = vec![0u32; encoding.len()];
        let spans = if count == 0 { &[] } else { slice::from_raw_parts(spans, 2 * count) };
        mark(&encoding, spans, &mut marked)?;
        ids.write(Ids::from_slice(encoding.get_ids()));
        mask.write(Ids::from_slice(&marked));
        Ok(())
    })
}

/// # Safety
/// `ids` holds `count` ids.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    count: usize,
    skip_special_tokens: bool,
    text: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let tokenizer = &*tokenizer;
        let ids = if count == 0 { &[] } else { slice::from_raw_parts(ids, count) };
        let decoded = tokenizer.decode(ids, skip_special_tokens).map_err(Failure::invalid)?;
        text.write(Bytes::from_vec(decoded.into_bytes()));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is valid. -1: no such token.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_token_to_id(tokenizer: *const Tokenizer, token: Slice) -> i64 {
    let find = || token.text().ok().and_then(|token| (*tokenizer).token_to_id(token)).map_or(-1, i64::from);
    catch_unwind(AssertUnwindSafe(find)).unwrap_or(-1)
}

/// # Safety
/// `tokenizer` is valid.
#[no_mangle]
pub unsafe extern "C" fn retort_tokenizer_vocab_size(tokenizer: *const Tokenizer) -> usize {
    catch_unwind(AssertUnwindSafe(|| (*tokenizer).get_vocab_size(true))).unwrap_or(0)
}

/// # Safety
/// `source` is readable; `template` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn retort_template_new(
    source: Slice,
    now: i64,
    template: *mut *mut ChatTemplate,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let compiled = ChatTemplate::compile(source.text()?, now)?;
        template.write(Box::into_raw(Box::new(compiled)));
        Ok(())
    })
}

/// # Safety
/// `template` came from `retort_template_new` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn retort_template_free(template: *mut ChatTemplate) {
    drop(Box::from_raw(template));
}

/// # Safety
/// `template` is valid, the slices are readable, `text`, `spans` and `error` are writable.
#[no_mangle]
pub unsafe extern "C" fn retort_template_render(
    template: *const ChatTemplate,
    messages: Slice,
    variables: Slice,
    continued: Slice,
    text: *mut Bytes,
    spans: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let rendered = (*template).render(messages.text()?, variables.text()?, continued.text()?)?;
        let flat: Vec<u32> = rendered.spans.iter().flat_map(|(start, end)| [*start as u32, *end as u32]).collect();
        spans.write(Ids::from_slice(&flat));
        text.write(Bytes::from_vec(rendered.text.into_bytes()));
        Ok(())
    })
}

/// # Safety
/// `bytes` came from this library and is not used again.
#[no_mangle]
pub unsafe extern "C" fn retort_bytes_free(bytes: Bytes) {
    drop(Box::from_raw(slice::from_raw_parts_mut(bytes.data, bytes.size)));
}

/// # Safety
/// `ids` came from this library and is not used again.
#[no_mangle]
pub unsafe extern "C" fn retort_ids_free(ids: Ids) {
    drop(Box::from_raw(slice::from_raw_parts_mut(ids.data, ids.size)));
}
