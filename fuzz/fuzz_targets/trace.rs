//! A trace of a reference model: as it is, and with the hash that its bytes ask for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nibble::trace::metrics::{Expected, Summary, distance};
use nibble::trace::texts::{Cut, TokenizedText};
use nibble::trace::{Header, Trace, Writer};

fuzz_target!(init: nibble_fuzz::seeds([trace(40, 4), trace(70_000, 1)]), |bytes: &[u8]| {
    open(bytes);
    // Without this no change would get past the hash. Seeds end without theirs.
    open(&[bytes, blake3::hash(bytes).as_bytes()].concat());
});

fn open(bytes: &[u8]) {
    let Ok(trace) = Trace::open(&nibble_fuzz::file("a.trace", bytes)) else { return };
    let n_rows: usize =
        trace.texts().iter().map(|text| trace.header().cut().windows(text).map(|w| w.1.len()).sum::<usize>()).sum();
    // A candidate with the same vocabulary, as far as that is not large.
    let logits: Vec<f32> = (0..trace.header().n_vocab.min(100_000)).map(|i| (i % 97) as f32).collect();
    let Ok(summary) = Summary::of(&logits) else { return };
    for row in 0..n_rows {
        let row = trace.row(row).expect("every window has its rows");
        distance(&Expected::Trace(&row), &logits, &summary, 3);
    }
    assert!(trace.row(n_rows).is_none());
}

fn trace(n_vocab: u32, k: u32) -> Vec<u8> {
    let window = 16;
    let header = Header { n_vocab, window, drawn: 2, nibble: "0".to_string(), ..Header::default() };
    let text = TokenizedText {
        name: "en".into(),
        blake3: "ab".repeat(32),
        n_tokens: 19,
        tokens: (0..window).collect(),
        ..TokenizedText::default()
    };
    let path = nibble_fuzz::folder().join("seed.trace");
    let mut writer = Writer::create(&path, header, k, std::slice::from_ref(&text)).expect("a trace begins");
    for (_, scored) in (Cut { window }).windows(&text) {
        for (row, right) in scored.iter().enumerate() {
            let logits: Vec<f32> = (0..n_vocab).map(|i| (i * 7919 % 1009) as f32 / 100.0).collect();
            let summary = Summary::of(&logits).expect("finite logits");
            writer.add(&writer.header().row(row as u64, &logits, &summary, *right)).expect("a row is written");
        }
    }
    writer.finish(true).expect("a trace ends");
    let mut bytes = std::fs::read(&path).expect("the trace is there");
    bytes.truncate(bytes.len() - 32);
    bytes
}
