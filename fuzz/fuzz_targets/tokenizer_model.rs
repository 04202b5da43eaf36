//! `tokenizer.model`, a sentencepiece model in protocol buffers, and the tokenizer that is made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nibble::vocab::{TokenizerFiles, metadata};

fuzz_target!(init: nibble_fuzz::seeds([model(2, true, None), model(1, false, Some(charsmap())), vec![]]), |bytes: &[u8]| {
    let model = Some(nibble_fuzz::file("tokenizer.model", bytes));
    let files = TokenizerFiles { model, ..TokenizerFiles::default() };
    if let Ok((metadata, _)) = metadata(&files, 64) {
        nibble_fuzz::use_vocabulary(&metadata);
    }
});

/// A field of a message: bytes with their length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut length = bytes.len();
    let mut out = vec![number << 3 | 2];
    while length > 127 {
        out.push(length as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    [&out, bytes].concat()
}

/// A model of type `kind`: 1 is unigram, 2 byte-pair encoding.
fn model(kind: u8, byte_fallback: bool, charsmap: Option<Vec<u8>>) -> Vec<u8> {
    let pieces = [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        ("<0x0A>", 6),
        ("<|im_end|>", 4),
        ("▁", 1),
        ("a", 1),
        ("H", 1),
        ("l", 1),
        ("ll", 1),
        ("ell", 1),
        ("e", 1),
        ("[PAD]", 5),
        ("<0xE5>", 6),
    ];
    let mut bytes = Vec::new();
    // Bytes are pieces only where the model falls back to them.
    let pieces = pieces.iter().filter(|(_, ty)| byte_fallback || *ty != 6);
    for (index, (text, ty)) in pieces.enumerate() {
        let score = (-(index as f32)).to_le_bytes();
        bytes.extend(field(1, &[field(1, text.as_bytes()), [&[0x15], &score[..]].concat(), vec![0x18, *ty]].concat()));
    }
    // Field 3 is the model's type; 35, byte_fallback.
    bytes.extend(field(2, &[0x18, kind, 0x98, 0x02, u8::from(byte_fallback)]));
    let table = charsmap.map(|table| field(2, &table)).unwrap_or_default();
    bytes.extend(field(3, &[table, vec![0x18, u8::from(kind == 1), 0x20, 1]].concat()));
    bytes
}

/// A table of replacements: `e` becomes `xy`.
fn charsmap() -> Vec<u8> {
    let mut units = vec![0u32; 256];
    let at = usize::from(b'e');
    units[at] = u32::from(b'e') | 1 << 8 | 1 << 10;
    units[at ^ 1] = 0x8000_0000;
    let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend(b"xy\0");
    bytes
}
