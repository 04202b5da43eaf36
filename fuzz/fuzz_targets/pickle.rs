//! A PyTorch file: as it is, and as the pickle in an archive.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use nibble::checkpoint::testing::{PickledTensor, pickle_state_dict, write_zip};
use nibble::checkpoint::{Checkpoint, DType};

fuzz_target!(init: nibble_fuzz::seeds(seeds()), |bytes: &[u8]| {
    open(bytes);
    if !bytes.starts_with(b"PK") {
        open(&archive(bytes));
    }
});

fn open(bytes: &[u8]) {
    nibble_fuzz::file("config.json", b"{}");
    let Ok(model) = Checkpoint::open(&nibble_fuzz::file("pytorch_model.bin", bytes)) else { return };
    for tensor in model.tensors() {
        assert_eq!(model.data(tensor).len() as u64, tensor.n_bytes());
        let _ = tensor.float_type();
        tensor.n_elements();
    }
}

/// An archive of this pickle and two storages of 32 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let entries = [("m/data.pkl", pickle), ("m/data/0", &[1; 32]), ("m/data/1", &[2; 32]), ("m/byteorder", b"little")];
    let mut bytes = Cursor::new(Vec::new());
    write_zip(&mut bytes, entries.into_iter().map(|(name, data)| (name.to_string(), data))).expect("memory takes all");
    bytes.into_inner()
}

fn seeds() -> Vec<Vec<u8>> {
    let tensor = |name: &str, key: &str, dtype, shape: &[u64], strides: &[u64], storage_len| PickledTensor {
        name: name.to_string(),
        dtype,
        key: key.to_string(),
        storage_len,
        offset: 0,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let one = pickle_state_dict(&[tensor("a", "0", DType::F32, &[2, 4], &[4, 1], 8)]);
    let two = pickle_state_dict(&[
        tensor("a.weight", "0", DType::BF16, &[4, 4], &[1, 4], 16),
        tensor("b", "1", DType::I64, &[], &[], 4),
    ]);
    let whole = archive(&one);
    let real = [
        &include_bytes!("../../tests/data/torch/legacy.bin")[..],
        include_bytes!("../../tests/data/torch/nested.bin"),
        include_bytes!("../../tests/data/torch/state_dict.bin"),
        include_bytes!("../../tests/data/torch/transposed.bin"),
    ];
    [one, two, whole].into_iter().chain(real.map(<[u8]>::to_vec)).collect()
}
