//! `nibble inspect` for people. Everything that comes from the file is printed through [`printable`].

use std::io::Write;

use super::TensorReport;
use super::facts::Summary;
use super::json::info_index;
use super::stats::Histogram;
use crate::base::display::{printable, shorten};
use crate::base::units;
use crate::cli::groups::{Group, groups, layer_list};
use crate::cli::making;
use crate::cli::out::Out;
use crate::cli::table::{self, Align};
use crate::gguf::{self, Array, Gguf, Metadata, Value};
use crate::verify::Provenance;

/// The longest text that a table shows, in characters.
const LONGEST_TEXT: usize = 120;
/// The longest element of an array that a table shows, in characters.
const LONGEST_ELEMENT: usize = 20;
/// Arrays of more elements than this show the first few.
const MOST_ELEMENTS: usize = 8;
const FIRST_ELEMENTS: usize = 4;

/// Everything about a model: summary, types, metadata, tensors.
pub fn model(gguf: &Gguf, each_tensor: bool, full: bool, out: &mut Out) -> anyhow::Result<()> {
    let summary = Summary::of(gguf);
    out.table(table::pairs(summary_rows(gguf, &summary)))?;
    if !summary.types.is_empty() {
        writeln!(out)?;
        out.table(types(&summary))?;
    }
    writeln!(out, "\nMetadata, {}\n", plural(gguf.metadata().len(), "key", "keys"))?;
    out.table(metadata(gguf.metadata(), full))?;
    writeln!(out, "\nTensors, {} (fastest dimension first)\n", gguf.tensors().len())?;
    out.table(if each_tensor { every_tensor(gguf) } else { grouped_tensors(gguf) })?;
    Ok(())
}

fn summary_rows(gguf: &Gguf, summary: &Summary) -> Vec<(&'static str, String)> {
    let mut rows = vec![];
    if let Some(name) = summary.name {
        rows.push(("Name", shorten(name, LONGEST_TEXT)));
    }
    rows.push(("Architecture", architecture(summary)));
    if let Some(context) = summary.shape.context {
        rows.push(("Context", context_line(context, summary.shape.kv_bytes_per_token)));
    }
    if let Some(n) = summary.n_tokens {
        rows.push(("Vocabulary", plural(n, "token", "tokens")));
    }
    rows.push(("Parameters", units::count(summary.n_parameters)));
    rows.push(("Files", files_line(gguf)));
    if let Some(bits) = summary.bits_per_weight {
        let recipe = summary.file_type.map(|name| format!(" ({name})")).unwrap_or_default();
        rows.push(("Bits per weight", format!("{bits:.2}{recipe}")));
    }
    rows.extend(making::rows(&Provenance::of(gguf.metadata())));
    rows
}

fn architecture(summary: &Summary) -> String {
    let shape = &summary.shape;
    let mut words = vec![summary.architecture.map_or("not given".to_string(), |name| shorten(name, LONGEST_TEXT))];
    let mut push = |n: Option<u64>, what: &dyn Fn(u64) -> String| words.extend(n.map(what));
    push(shape.layers, &|n| format!("{n} layers"));
    push(shape.hidden, &|n| format!("hidden {n}"));
    push(shape.feed_forward, &|n| format!("feed-forward {n}"));
    match (shape.heads, shape.kv_heads) {
        (Some(heads), Some(kv_heads)) if heads != kv_heads => {
            words.push(format!("{heads} heads sharing {kv_heads} of keys and values"));
        }
        (heads, _) => words.extend(heads.map(|n| format!("{n} heads"))),
    }
    words.join(", ")
}

fn context_line(context: u64, kv_bytes_per_token: Option<u64>) -> String {
    let cache = kv_bytes_per_token.and_then(|bytes| bytes.checked_mul(context)).map(units::bytes);
    let cache = cache.map(|bytes| format!("; {bytes} of memory when full, at 16 bits")).unwrap_or_default();
    format!("{context} tokens{cache}")
}

fn files_line(gguf: &Gguf) -> String {
    let (n, version) = (gguf.paths().len(), gguf.version());
    let parts = if n == 1 { String::new() } else { format!(" in {n} parts") };
    format!("{}{parts}, GGUF version {version}", units::bytes(gguf.file_bytes()))
}

fn types(summary: &Summary) -> comfy_table::Table {
    let mut table = table::new(&[
        ("Type", Align::Left),
        ("Tensors", Align::Right),
        ("Weights", Align::Right),
        ("Size", Align::Right),
        ("Share", Align::Right),
    ]);
    for share in &summary.types {
        let part = share.n_bytes as f64 / summary.tensor_bytes.max(1) as f64;
        table.add_row([
            share.ty.name().to_string(),
            share.n_tensors.to_string(),
            units::count(share.n_weights),
            units::bytes(share.n_bytes),
            format!("{:.1}%", part * 100.0),
        ]);
    }
    table
}

fn metadata(metadata: &Metadata, full: bool) -> comfy_table::Table {
    let mut table = table::new(&[("Key", Align::Left), ("Type", Align::Left), ("Value", Align::Left)]);
    for (key, value) in metadata.iter() {
        let shown = match (full, value) {
            (true, Value::String(text)) => printable(text).into_owned(),
            (true, Value::Array(array)) => elements(array, usize::MAX, usize::MAX),
            _ => shown(value),
        };
        let meaning = meaning(metadata, key, value).map(|m| format!(" ({m})")).unwrap_or_default();
        table.add_row([shorten(key, LONGEST_TEXT), type_name(value), shown + &meaning]);
    }
    table
}

/// `str`, or `str[64000]`.
fn type_name(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("{}[{}]", array.element_type(), array.len()),
        other => other.value_type().to_string(),
    }
}

/// Returns what a number stands for.
fn meaning(metadata: &Metadata, key: &str, value: &Value) -> Option<String> {
    let number = value.as_u64()?;
    if key == "general.file_type" {
        return gguf::file_type(number).map(str::to_string);
    }
    let is_token = key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id");
    let tokens = metadata.get("tokenizer.ggml.tokens").filter(|_| is_token)?.as_array()?.as_strings()?;
    tokens.get(usize::try_from(number).ok()?).map(|token| quoted(token, LONGEST_ELEMENT))
}

/// A value as a table shows it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Array(array) if array.len() > MOST_ELEMENTS => {
            format!("{}, ...", elements(array, FIRST_ELEMENTS, LONGEST_ELEMENT))
        }
        Value::Array(array) => elements(array, MOST_ELEMENTS, LONGEST_ELEMENT),
        Value::String(text) if text.is_empty() => "(empty)".to_string(),
        Value::String(text) => shorten(text, LONGEST_TEXT),
        number => whole(number),
    }
}

/// The first `most` elements, each of at most `longest` characters.
fn elements(array: &Array, most: usize, longest: usize) -> String {
    let shown: Vec<_> = (0..array.len().min(most))
        .filter_map(|index| array.get(index))
        .map(|value| match value {
            Value::String(text) => quoted(&text, longest),
            Value::Array(inner) if longest == usize::MAX => format!("[{}]", elements(&inner, most, longest)),
            Value::Array(inner) => format!("{}[{}]", inner.element_type(), inner.len()),
            number => whole(&number),
        })
        .collect();
    shown.join(", ")
}

/// A value without anything left out or escaped: elements of an array one per line.
pub fn whole(value: &Value) -> String {
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        // Debug uses exponents if there would be many digits: 1e-5, 5000000.0.
        Value::F32(v) => format!("{v:?}"),
        Value::F64(v) => format!("{v:?}"),
        Value::Bool(v) => v.to_string(),
        Value::String(v) => v.clone(),
        Value::Array(array) => {
            let lines: Vec<_> = (0..array.len())
                .filter_map(|index| array.get(index))
                .map(|value| match value {
                    Value::Array(inner) => elements(&inner, usize::MAX, usize::MAX),
                    other => whole(&other),
                })
                .collect();
            lines.join("\n")
        }
    }
}

fn quoted(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => format!("\"{}\"", printable(text)),
        Some((end, _)) => format!("\"{}...\"", printable(&text[..end])),
    }
}

fn every_tensor(gguf: &Gguf) -> comfy_table::Table {
    let mut table =
        table::new(&[("Tensor", Align::Left), ("Shape", Align::Right), ("Type", Align::Left), ("Size", Align::Right)]);
    for info in gguf.tensors() {
        table.add_row([
            printable(&info.name).into_owned(),
            units::shape(&info.dims),
            info.ty.name().to_string(),
            units::bytes(info.n_bytes().unwrap_or(0)),
        ]);
    }
    table
}

fn grouped_tensors(gguf: &Gguf) -> comfy_table::Table {
    let mut table = table::new(&[
        ("Tensor", Align::Left),
        ("Layers", Align::Left),
        ("Count", Align::Right),
        ("Shape", Align::Right),
        ("Type", Align::Left),
        ("Size", Align::Right),
    ]);
    let tensors = gguf.tensors().iter();
    // The sizes of all tensors are known: the file was checked when it was opened.
    let groups = groups(tensors.map(|t| (t.name.as_str(), (t.dims.as_slice(), t.ty), t.n_bytes().unwrap_or(0))));
    for alike in groups.chunk_by(|a, b| a.name == b.name) {
        for (group, layers) in alike.iter().zip(layer_cells(alike)) {
            let (dims, ty) = group.alike;
            table.add_row([
                printable(&group.name).into_owned(),
                layers,
                format!("x{}", group.n_tensors),
                units::shape(dims),
                ty.name().to_string(),
                units::bytes(group.n_bytes),
            ]);
        }
    }
    table
}

/// The layers of groups that share a name. Where one type is given to every third layer, the list of the rest is long
/// and says nothing new: it becomes `the others`.
fn layer_cells<K>(alike: &[Group<K>]) -> Vec<String> {
    const LONG: usize = 24;
    let mut lists: Vec<_> = alike.iter().map(|group| layer_list(&group.layers)).collect();
    if let Some(longest) = lists.iter_mut().max_by_key(|list| list.len())
        && alike.len() > 1
        && longest.len() > LONG
    {
        *longest = "the others".to_string();
    }
    lists
}

/// The statistics of one tensor.
pub fn tensor(report: &TensorReport, out: &mut Out) -> anyhow::Result<()> {
    let (info, stats) = (&report.info, &report.stats);
    let n_weights = info.n_elements().unwrap_or(0);
    let mut rows = vec![
        ("Tensor", printable(&info.name).into_owned()),
        ("Shape", format!("{} (fastest dimension first)", units::shape(&info.dims))),
        ("Type", format!("{}, {:.2} bits per weight", info.ty, info.ty.bits_per_weight())),
        ("Weights", units::count(n_weights)),
        ("Size", units::bytes(report.n_bytes as u64)),
        ("Place", format!("byte {} of {}", report.offset, report.file.display())),
    ];
    let extreme = |(value, index): (f32, u64)| format!("{} at {}", number(value.into()), position(&info.dims, index));
    rows.extend(stats.min.map(|min| ("Min", extreme(min))));
    rows.extend(stats.max.map(|max| ("Max", extreme(max))));
    rows.extend(stats.abs_max().map(|max| ("Abs max", extreme(max))));
    if stats.n > 0 {
        rows.push(("Mean", number(stats.mean)));
        rows.push(("Std", number(stats.std())));
        rows.push(("RMS", number(stats.rms())));
    }
    rows.push(("Zeros", share(stats.zeros, n_weights)));
    rows.push(("NaN", share(stats.nans, n_weights)));
    rows.push(("Infinite", share(stats.infinities, n_weights)));
    let first: Vec<_> = report.first.iter().map(|&weight| number(weight.into())).collect();
    let more = if n_weights > first.len() as u64 { ", ..." } else { "" };
    rows.push(("First", format!("{}{more}", first.join(", "))));
    out.table(table::pairs(rows))?;
    if let Some(histogram) = &report.histogram {
        writeln!(out)?;
        write!(out, "{}", bars(histogram, out.width().unwrap_or(80)))?;
    }
    Ok(())
}

/// Prints a line per bin: where it begins, how many weights it has, and a bar.
fn bars(histogram: &Histogram, width: u16) -> String {
    let n_weights: u64 = histogram.counts.iter().sum();
    let most = histogram.counts.iter().copied().max().unwrap_or(1).max(1);
    let labels: Vec<_> = histogram
        .counts
        .iter()
        .enumerate()
        .map(|(bin, &count)| (number(histogram.edge(bin)), share(count, n_weights)))
        .collect();
    let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    let edge_width = longest(&mut labels.iter().map(|(edge, _)| edge.len()));
    let share_width = longest(&mut labels.iter().map(|(_, share)| share.len()));
    let room = usize::from(width).saturating_sub(edge_width + share_width + 6).clamp(8, 50);

    let mut lines = String::new();
    for ((edge, share), &count) in labels.iter().zip(&histogram.counts) {
        // A bin with any weight at all shows.
        let bar = if count == 0 { 0 } else { ((count as f64 / most as f64 * room as f64).round() as usize).max(1) };
        let line = format!("{edge:>edge_width$}  {share:>share_width$}  {}", "#".repeat(bar));
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    // If all weights are equal, there is one bin, which ends where it begins.
    if histogram.min < histogram.max {
        lines.push_str(&format!("{:>edge_width$}\n", number(histogram.max.into())));
    }
    lines
}

fn share(count: u64, of: u64) -> String {
    if count == 0 {
        return "0".to_string();
    }
    let percent = count as f64 / of.max(1) as f64 * 100.0;
    let percent = if percent < 0.01 { "< 0.01%".to_string() } else { format!("{percent:.2}%") };
    format!("{count} ({percent})")
}

/// Returns the position of a weight by row and column.
fn position(dims: &[u64], index: u64) -> String {
    match info_index(dims, index).as_slice() {
        [at] => format!("{at}"),
        [column, row] => format!("row {row}, column {column}"),
        several => format!("{several:?}"),
    }
}

/// Formats with five digits, and with an exponent only if a number is very large or very small.
fn number(v: f64) -> String {
    let magnitude = v.abs();
    if v == 0.0 || !v.is_finite() {
        return v.to_string();
    }
    if !(1e-4..1e6).contains(&magnitude) {
        return format!("{v:.4e}");
    }
    let before_point = magnitude.log10().floor() as i32 + 1;
    format!("{v:.*}", usize::try_from(5 - before_point).unwrap_or(0).min(8))
}

pub fn plural(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_five_digits() {
        assert_eq!(number(0.0), "0");
        assert_eq!(number(0.123_456_789), "0.12346");
        assert_eq!(number(-12.345_678), "-12.346");
        assert_eq!(number(0.001_234_567), "0.0012346");
        assert_eq!(number(123_456.0), "123456");
        assert_eq!(number(1.5e-9), "1.5000e-9");
        assert_eq!(number(3.4e38), "3.4000e38");
        assert_eq!(number(f64::NAN), "NaN");
    }

    #[test]
    fn long_texts_say_how_long_they_are() {
        assert_eq!(shorten("短", 3), "短");
        assert_eq!(shorten("一二三四五", 3), "一二三... (5 characters)");
        assert_eq!(quoted("a\n\x1b[0m", 20), "\"a\\n\\u{1b}[0m\"");
        assert_eq!(quoted("abcdef", 3), "\"abc...\"");
    }

    #[test]
    fn arrays_show_a_few_elements() {
        let tokens: Vec<String> = (0..64_000).map(|n| format!("<{n}>")).collect();
        assert_eq!(shown(&Value::from(tokens)), "\"<0>\", \"<1>\", \"<2>\", \"<3>\", ...");
        assert_eq!(shown(&Value::from(vec![0.5f32, 1e-5])), "0.5, 1e-5");
        assert_eq!(shown(&Value::from("")), "(empty)");
        let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::String(vec!["a".into()])]);
        assert_eq!(shown(&Value::Array(nested.clone())), "u8[2], str[1]");
        assert_eq!(whole(&Value::Array(nested)), "1, 2\n\"a\"");
    }

    #[test]
    fn a_list_of_layers_that_says_nothing_new_is_left_out() {
        let more_bits: Vec<u32> = (0..60).filter(|&i| !(7..52).contains(&i) || (i - 7) % 3 == 2).collect();
        let others: Vec<u32> = (0..60).filter(|i| !more_bits.contains(i)).collect();
        let group = |layers: &[u32]| Group {
            name: "blk.*.ffn_down.weight".into(),
            alike: (),
            layers: layers.to_vec(),
            n_tensors: layers.len() as u64,
            n_bytes: 0,
        };
        assert_eq!(layer_cells(&[group(&more_bits), group(&others)]), ["0-6, 9-48 by 3, 51-59", "the others"]);
        assert_eq!(layer_cells(&[group(&[0, 1, 5]), group(&[2, 3, 4])]), ["0-1, 5", "2-4"]);
        assert!(layer_cells(&[group(&others)])[0].starts_with("7-8, 10-11, "));
    }

    #[test]
    fn bars_are_as_long_as_their_bins_are_full() {
        let histogram = Histogram { min: -1.0, max: 1.0, counts: vec![1, 100, 0, 50] };
        let wanted = [
            " -1.0000     1 (0.66%)  #",
            "-0.50000  100 (66.23%)  ############",
            "       0             0",
            " 0.50000   50 (33.11%)  ######",
            "  1.0000",
        ];
        let text = bars(&histogram, 38);
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    }
}
