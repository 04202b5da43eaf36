//! `nibble inspect` of a Hugging Face folder.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value as Json, json};

use super::text;
use super::{TensorReport, suggestion};
use crate::base::display::{printable, shorten};
use crate::base::units;
use crate::checkpoint::{Checkpoint, DType, Tensor};
use crate::cli::groups::groups;
use crate::cli::out::Out;
use crate::cli::table::{self, Align};
use crate::gguf::TensorInfo;

/// The longest value of `config.json` that a table shows, in characters.
const LONGEST_VALUE: usize = 120;

/// Everything about a checkpoint: summary, types, configuration, tensors.
pub fn model(checkpoint: &Checkpoint, each_tensor: bool, full: bool, out: &mut Out) -> anyhow::Result<()> {
    out.table(table::pairs(summary_rows(checkpoint)))?;
    writeln!(out)?;
    out.table(types(checkpoint))?;
    let config = checkpoint.config().map();
    let name = config_name(checkpoint);
    writeln!(out, "\n{name}, {}\n", text::plural(config.len(), "key", "keys"))?;
    let longest = if full { usize::MAX } else { LONGEST_VALUE };
    let mut rows = table::new(&[("Key", Align::Left), ("Value", Align::Left)]);
    for (key, value) in config {
        rows.add_row([shorten(key, LONGEST_VALUE), shorten(&value.to_string(), longest)]);
    }
    out.table(rows)?;
    writeln!(out, "\nTensors, {} (slowest dimension first)\n", checkpoint.tensors().len())?;
    out.table(tensors(checkpoint, each_tensor))?;
    for warning in checkpoint.warnings() {
        writeln!(out, "\nwarning: {}", printable(warning))?;
    }
    Ok(())
}

/// `config.json`, or an adapter's `adapter_config.json`.
pub fn config_name(checkpoint: &Checkpoint) -> String {
    checkpoint.config().path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns a summary of an adapter, such as `LORA, rank 16, alpha 32`; `None` for a model.
fn adapter(checkpoint: &Checkpoint) -> Option<String> {
    let config = checkpoint.config();
    let mut words = vec![shorten(config.opt_str("peft_type").ok()??, LONGEST_VALUE)];
    words.extend(config.opt_u64("r").ok().flatten().map(|rank| format!("rank {rank}")));
    words.extend(config.opt_f64("lora_alpha").ok().flatten().map(|alpha| format!("alpha {alpha}")));
    words.extend(config.opt_bool("use_rslora").ok()?.filter(|is| *is).map(|_| "rank-stabilized".to_string()));
    Some(words.join(", "))
}

fn summary_rows(checkpoint: &Checkpoint) -> Vec<(&'static str, String)> {
    let config = checkpoint.config();
    let first =
        |key: &str| config.strs(key).ok().and_then(|names| names.first().map(|name| shorten(name, LONGEST_VALUE)));
    let number = |key: &str| config.opt_u64(key).ok().flatten();
    let card = checkpoint.card();

    let mut rows = vec![("Name", shorten(&checkpoint.name(), LONGEST_VALUE))];
    let mut push = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    push("Architecture", first("architectures").or_else(|| first("model_type")));
    push("Adapter", adapter(checkpoint));
    push("For", config.opt_str("base_model_name_or_path").ok().flatten().map(|base| shorten(base, LONGEST_VALUE)));
    push("Context", number("max_position_embeddings").map(|n| format!("{n} tokens")));
    push("Vocabulary", number("vocab_size").map(|n| format!("{n} tokens")));
    push(
        "Parameters",
        Some(units::count(checkpoint.tensors().iter().map(Tensor::n_elements).fold(0, u64::saturating_add))),
    );
    push("Files", Some(files_line(checkpoint)));
    push("Tokenizer", tokenizer(checkpoint));
    push("Chat template", checkpoint.chat_template().map(|t| format!("{} characters", t.chars().count())));
    push("License", card.license_name.as_ref().or(card.license.as_ref()).map(|l| shorten(l, LONGEST_VALUE)));
    push("Made from", (!card.base_model.is_empty()).then(|| shorten(&card.base_model.join(", "), LONGEST_VALUE)));
    rows
}

fn files_line(checkpoint: &Checkpoint) -> String {
    let bytes = units::bytes(checkpoint.tensors().iter().map(Tensor::n_bytes).fold(0, u64::saturating_add));
    let kind = match checkpoint.shards().next().and_then(|path| path.extension()) {
        Some(extension) if extension == "bin" => "PyTorch",
        _ => "safetensors",
    };
    match checkpoint.shards().len() {
        1 => format!("{bytes}, {kind}"),
        n => format!("{bytes} in {n} parts, {kind}"),
    }
}

fn tokenizer(checkpoint: &Checkpoint) -> Option<String> {
    let file = checkpoint.tokenizer_model().or_else(|| checkpoint.tokenizer_json())?;
    Some(file.file_name()?.to_string_lossy().into_owned())
}

/// Tensors, elements and bytes of each element type, by its name.
fn by_type(checkpoint: &Checkpoint) -> BTreeMap<String, (u64, u64, u64)> {
    let mut types = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let (n_tensors, n_elements, n_bytes): &mut (u64, u64, u64) = types.entry(tensor.dtype.to_string()).or_default();
        *n_tensors += 1;
        *n_elements = n_elements.saturating_add(tensor.n_elements());
        *n_bytes = n_bytes.saturating_add(tensor.n_bytes());
    }
    types
}

fn types(checkpoint: &Checkpoint) -> comfy_table::Table {
    let columns = [("Type", Align::Left), ("Tensors", Align::Right), ("Weights", Align::Right), ("Size", Align::Right)];
    let mut rows = table::new(&columns);
    for (name, (n_tensors, n_elements, n_bytes)) in by_type(checkpoint) {
        rows.add_row([name, n_tensors.to_string(), units::count(n_elements), units::bytes(n_bytes)]);
    }
    rows
}

/// Every tensor, or those that differ only in their layer on one line.
fn tensors(checkpoint: &Checkpoint, each: bool) -> comfy_table::Table {
    let mut rows = table::new(&[
        ("Tensor", Align::Left),
        ("Count", Align::Right),
        ("Shape", Align::Right),
        ("Type", Align::Left),
        ("Size", Align::Right),
    ]);
    let mut row = |name: &str, n: u64, shape: &[u64], dtype: DType, n_bytes: u64| {
        rows.add_row([
            shorten(name, LONGEST_VALUE),
            n.to_string(),
            units::shape(shape),
            dtype.to_string(),
            units::bytes(n_bytes),
        ]);
    };
    let tensors = checkpoint.tensors().iter();
    if each {
        tensors.for_each(|t| row(&t.name, 1, &t.shape, t.dtype, t.n_bytes()));
    } else {
        for group in groups(tensors.map(|t| (t.name.as_str(), (t.shape.as_slice(), t.dtype), t.n_bytes()))) {
            let (shape, dtype) = group.alike;
            row(&group.name, group.n_tensors, shape, dtype, group.n_bytes);
        }
    }
    rows
}

/// The same as [`model`], for machines.
pub fn model_json(checkpoint: &Checkpoint, out: &mut Out) -> anyhow::Result<()> {
    let types: Vec<Json> = by_type(checkpoint)
        .into_iter()
        .map(|(name, (tensors, weights, bytes))| {
            json!({"type": name, "tensors": tensors, "weights": weights, "bytes": bytes})
        })
        .collect();
    let files: Vec<_> = checkpoint.shards().map(|path| path.to_string_lossy().into_owned()).collect();
    let tensors: Vec<Json> =
        checkpoint.tensors().iter().map(|tensor| tensor_info(checkpoint, tensor, &files)).collect();
    let card = checkpoint.card();
    let model = json!({
        "format": if adapter(checkpoint).is_some() { "adapter" } else { "checkpoint" },
        "name": checkpoint.name(),
        "files": files,
        "parameters": checkpoint.tensors().iter().map(Tensor::n_elements).fold(0, u64::saturating_add),
        "tensor_bytes": checkpoint.tensors().iter().map(Tensor::n_bytes).fold(0, u64::saturating_add),
        "types": types,
        "license": card.license,
        "base_model": card.base_model,
        "config": checkpoint.config().map(),
        "warnings": checkpoint.warnings(),
        "tensors": tensors,
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&model)?)?)
}

fn tensor_info(checkpoint: &Checkpoint, tensor: &Tensor, files: &[String]) -> Json {
    let (map, range) = checkpoint.location(tensor);
    let path = map.path().to_string_lossy();
    json!({
        "name": tensor.name,
        "shape": tensor.shape,
        "type": tensor.dtype.to_string(),
        "weights": tensor.n_elements(),
        "bytes": tensor.n_bytes(),
        "file": files.iter().position(|file| *file == path),
        "offset": range.start,
    })
}

/// The weights of the tensor called `name`.
pub fn report<'a>(checkpoint: &'a Checkpoint, name: &str) -> anyhow::Result<TensorReport<'a>> {
    let Some(tensor) = checkpoint.tensor(name) else {
        let names = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str());
        anyhow::bail!("no tensor '{}'{}", printable(name), suggestion(name, names));
    };
    let (map, range) = checkpoint.location(tensor);
    let dims = tensor.shape.iter().rev().copied().collect();
    TensorReport::new(TensorInfo { name: tensor.name.clone(), dims, ty: tensor.float_type()?.into() }, map, range)
}
