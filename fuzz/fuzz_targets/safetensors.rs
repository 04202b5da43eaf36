//! A safetensors file: as it is, and as the header of a file that ends where its data should.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nibble::checkpoint::Checkpoint;

/// Bytes of data behind a header.
const DATA: usize = 64;

fuzz_target!(init: nibble_fuzz::seeds(HEADERS), |bytes: &[u8]| {
    let length = (bytes.len() as u64).to_le_bytes();
    open(bytes);
    open(&[&length, bytes, &[7; DATA]].concat());
});

fn open(bytes: &[u8]) {
    nibble_fuzz::file("config.json", b"{}");
    let Ok(model) = Checkpoint::open(&nibble_fuzz::file("model.safetensors", bytes)) else { return };
    for tensor in model.tensors() {
        assert_eq!(model.data(tensor).len() as u64, tensor.n_bytes());
        let _ = tensor.float_type();
        tensor.n_elements();
    }
}

const HEADERS: [&str; 5] = [
    r#"{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}"#,
    r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[8],"data_offsets":[0,16]},"b":{"dtype":"F16","shape":[2,3,4],"data_offsets":[16,64]}}"#,
    r#"{"a":{"dtype":"F4","shape":[128],"data_offsets":[0,64]},"z":{"dtype":"I64","shape":[0],"data_offsets":[64,64]}}"#,
    r#"{"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]},"\u00e9":{"dtype":"F8_E4M3","shape":[56],"data_offsets":[8,64]}}"#,
    "\u{1}\0\0\0\0\0\0\0{}",
];
