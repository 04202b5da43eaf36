//! A GGUF file: opening it, and what is read from its metadata.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nibble::chat::Template;
use nibble::gguf::{Gguf, Layout, Metadata, TensorInfo, TensorType, Value};

fuzz_target!(init: nibble_fuzz::seeds([model(), vocabulary(), split()]), |bytes: &[u8]| {
    let Ok(gguf) = Gguf::open(&nibble_fuzz::file("model.gguf", bytes)) else { return };
    for (index, tensor) in gguf.tensors().iter().enumerate() {
        assert_eq!(tensor.n_bytes(), Some(gguf.data(index).len() as u64));
        assert_eq!(gguf.index_of(&tensor.name), Some(index));
    }
    let n_gaps: u64 = gguf.gaps().iter().map(|gap| gap.bytes.len() as u64).sum();
    assert!(n_gaps + gguf.tensor_bytes() <= gguf.file_bytes());
    gguf.n_parameters();
    nibble_fuzz::use_vocabulary(gguf.metadata());
    let _ = Template::from_metadata(gguf.metadata());
});

fn write(metadata: &Metadata, tensors: &[(&str, &[u64], TensorType)]) -> Vec<u8> {
    let info = |(name, dims, ty): &(&str, &[u64], TensorType)| TensorInfo {
        name: name.to_string(),
        dims: dims.to_vec(),
        ty: *ty,
    };
    let layout = Layout::new(metadata, tensors.iter().map(info).collect(), 32, None).expect("a sound layout");
    let mut bytes = Vec::new();
    let data = |index: usize| vec![index as u8; layout.tensors()[index].n_bytes().unwrap_or(0) as usize];
    layout.write_part(0, &mut bytes, data).expect("memory takes all");
    bytes
}

fn model() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("llama.block_count", 1u32);
    metadata.set("llama.rope.freq_base", 5e6f32);
    write(
        &metadata,
        &[("a", &[32, 2], TensorType::Q4_0), ("b", &[3], TensorType::F32), ("c", &[256], TensorType::Q6_K)],
    )
}

fn vocabulary() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", "llama");
    let pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "<|im_end|>"];
    metadata.set("tokenizer.ggml.tokens", pieces.map(String::from).to_vec());
    metadata.set("tokenizer.ggml.scores", (0..10).map(|i| -(i as f32)).collect::<Vec<f32>>());
    metadata.set("tokenizer.ggml.token_type", vec![2i32, 3, 3, 6, 1, 1, 1, 1, 1, 4]);
    metadata.set("tokenizer.ggml.eos_token_id", 2u32);
    metadata.set("tokenizer.ggml.add_space_prefix", true);
    metadata.set("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}");
    write(&metadata, &[])
}

fn split() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("split.no", Value::U16(0));
    metadata.set("split.count", Value::U16(2));
    metadata.set("split.tensors.count", Value::I32(2));
    write(&metadata, &[("a", &[1], TensorType::F32)])
}
