//! `nibble inspect --json`
//!
//! Sizes are in bytes and weights, shapes as in the file: the fastest dimension first. Numbers that JSON does not have
//! (NaN and the infinities) are strings.

use std::io::Write;

use serde_json::{Map, Value as Json, json};

use super::TensorReport;
use super::facts::Summary;
use crate::cli::out::Out;
use crate::gguf::{Array, Gguf, Value};

/// Prints the whole model. Arrays are reduced to their type and length, unless `full` asks for the elements as well.
pub fn model(gguf: &Gguf, full: bool, out: &mut Out) -> anyhow::Result<()> {
    let summary = Summary::of(gguf);
    let files: Vec<_> = gguf
        .mappings()
        .map(|map| json!({ "path": map.path().to_string_lossy(), "bytes": map.bytes().len() }))
        .collect();
    let types: Vec<_> = summary
        .types
        .iter()
        .map(|share| {
            json!({
                "type": share.ty.name(),
                "tensors": share.n_tensors,
                "weights": share.n_weights,
                "bytes": share.n_bytes,
            })
        })
        .collect();
    let metadata: Map<String, Json> =
        gguf.metadata().iter().map(|(key, value)| (key.to_string(), entry(value, full))).collect();
    let tensors: Vec<_> = (0..gguf.tensors().len()).map(|index| tensor_info(gguf, index)).collect();
    let model = json!({
        "format": "gguf",
        "version": gguf.version(),
        "alignment": gguf.alignment(),
        "files": files,
        "file_bytes": gguf.file_bytes(),
        "name": summary.name,
        "architecture": summary.architecture,
        "file_type": summary.file_type,
        "parameters": summary.n_parameters,
        "tensor_bytes": summary.tensor_bytes,
        "bits_per_weight": summary.bits_per_weight,
        "kv_bytes_per_token_f16": summary.shape.kv_bytes_per_token,
        "types": types,
        "metadata": metadata,
        "tensors": tensors,
    });
    print(&model, out)
}

/// The statistics of one tensor.
pub fn tensor(report: &TensorReport, out: &mut Out) -> anyhow::Result<()> {
    let (info, stats) = (&report.info, &report.stats);
    let extreme = |found: Option<(f32, u64)>| {
        found.map(
            |(value, index)| json!({ "value": f32_json(value), "index": index, "at": info_index(&info.dims, index) }),
        )
    };
    let histogram = report.histogram.as_ref().map(|histogram| {
        json!({ "from": f32_json(histogram.min), "to": f32_json(histogram.max), "counts": histogram.counts })
    });
    let tensor = json!({
        "name": info.name,
        "shape": info.dims,
        "type": info.ty.name(),
        "weights": info.n_elements(),
        "bytes": report.n_bytes,
        "file": report.file.to_string_lossy(),
        "offset": report.offset,
        "finite": stats.n,
        "zeros": stats.zeros,
        "nan": stats.nans,
        "infinite": stats.infinities,
        "min": extreme(stats.min),
        "max": extreme(stats.max),
        "abs_max": extreme(stats.abs_max()),
        "mean": stats.mean,
        "std": stats.std(),
        "rms": stats.rms(),
        "histogram": histogram,
        "first": report.first.iter().map(|&weight| f32_json(weight)).collect::<Vec<_>>(),
    });
    print(&tensor, out)
}

/// One metadata value, whole.
pub fn value(value: &Value, out: &mut Out) -> anyhow::Result<()> {
    print(&plain(value), out)
}

/// Returns the position of a weight: an index per dimension, the fastest first.
pub fn info_index(dims: &[u64], index: u64) -> Vec<u64> {
    let mut rest = index;
    dims.iter()
        .map(|&dim| {
            let at = rest % dim.max(1);
            rest /= dim.max(1);
            at
        })
        .collect()
}

fn print(json: &Json, out: &mut Out) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, json).map_err(std::io::Error::from)?;
    Ok(writeln!(out)?)
}

fn tensor_info(gguf: &Gguf, index: usize) -> Json {
    let info = &gguf.tensors()[index];
    let (map, range) = gguf.location(index);
    let file = gguf.paths().position(|path| path == map.path());
    json!({
        "name": info.name,
        "shape": info.dims,
        "type": info.ty.name(),
        "weights": info.n_elements(),
        "bytes": range.len(),
        "file": file,
        "offset": range.start,
    })
}

fn entry(value: &Value, full: bool) -> Json {
    match value {
        Value::Array(array) if full => {
            json!({ "type": "arr", "element_type": array.element_type().name(), "count": array.len(),
                    "value": plain(value) })
        }
        Value::Array(array) => {
            json!({ "type": "arr", "element_type": array.element_type().name(), "count": array.len() })
        }
        other => json!({ "type": other.value_type().name(), "value": plain(other) }),
    }
}

/// A value as JSON: numbers and texts as themselves, arrays whole.
pub fn plain(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => f32_json(*v),
        Value::F64(v) => f64_json(*v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(array) => array_json(array),
    }
}

fn array_json(array: &Array) -> Json {
    match array {
        Array::Array(v) => v.iter().map(array_json).collect(),
        _ => (0..array.len()).filter_map(|index| array.get(index)).map(|value| plain(&value)).collect(),
    }
}

/// The shortest decimal number that is this float: 0.1, not 0.10000000149.
fn f32_json(v: f32) -> Json {
    v.to_string().parse().map_or(Json::Null, f64_json)
}

fn f64_json(v: f64) -> Json {
    if v.is_finite() { json!(v) } else { json!(v.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_the_shortest_that_read_back() {
        assert_eq!(f32_json(0.1).to_string(), "0.1");
        assert_eq!(f32_json(1e-20).to_string(), "1e-20");
        assert_eq!(f32_json(5e6).to_string(), "5000000.0");
        assert_eq!(f32_json(f32::NAN), json!("NaN"));
        assert_eq!(f32_json(f32::NEG_INFINITY), json!("-inf"));
    }

    #[test]
    fn an_index_becomes_one_a_dimension() {
        assert_eq!(info_index(&[4, 3], 0), [0, 0]);
        assert_eq!(info_index(&[4, 3], 11), [3, 2]);
        assert_eq!(info_index(&[4, 3, 2], 23), [3, 2, 1]);
    }
}
