//! A file of importance, in either of its forms.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use nibble::calibration::importance::{File, Matrix, Sums, CalibrationText};

fuzz_target!(init: nibble_fuzz::seeds([gguf(), dat(false), dat(true)]), |bytes: &[u8]| {
    let Ok(file) = File::read(&nibble_fuzz::file("importance", bytes)) else { return };
    let _ = file.check(&HashMap::from([("a".to_string(), 3)]));
    for name in file.matrices() {
        assert!(file.matrix(name).is_some());
    }
    if let Ok(importance) = file.importance() {
        importance.matrices().for_each(|name| drop(importance.of(name).map(<[f32]>::to_vec)));
    }
    let mut sums = file.sums();
    let _ = sums.add(&file.sums(), 0.5, &file.path, "itself");
    let _ = sums.to_bytes();
});

fn gguf() -> Vec<u8> {
    let matrix = |n| Matrix { sums: vec![1.5; n], counts: vec![512.0] };
    let text = CalibrationText { name: "a.txt".into(), blake3: "ab".repeat(32), weight: 0.5, tokens: 1030, windows: 2 };
    let matrices = [("a".to_string(), matrix(3)), ("blk.0.ffn_up.weight".to_string(), matrix(8))].into();
    let sums = Sums { matrices, texts: vec![text], windows: 2, window: 512 };
    sums.to_bytes().expect("sound sums")
}

fn dat(with_text: bool) -> Vec<u8> {
    let mut bytes = 1i32.to_le_bytes().to_vec();
    bytes.extend(1i32.to_le_bytes());
    bytes.extend(b"a");
    bytes.extend([2i32, 3].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([1f32, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()));
    if with_text {
        bytes.extend([2i32, 5].iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(b"a.txt");
    }
    bytes
}
