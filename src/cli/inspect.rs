//! `nibble inspect`

pub(super) mod facts;
mod folder;
mod json;
mod stats;
mod text;

use crate::base::display::{printable, printable_lines};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

pub use self::json::plain;
use self::stats::{Decoder, Histogram, Stats};
pub use self::text::shown;
use super::out::{self, Out};
use crate::base::mmap::Mapping;
use crate::base::suggest;
use crate::checkpoint::Checkpoint;
use crate::gguf::{self, Gguf, TensorInfo};
use crate::quant;

/// Show what is inside a GGUF file or a Hugging Face folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A GGUF file (or any part of a split model), or a Hugging Face folder
    #[arg(value_name = "FILE|FOLDER")]
    model: PathBuf,

    /// List every tensor instead of grouping layers
    #[arg(long)]
    tensors: bool,

    /// Show statistics of one tensor's weights
    #[arg(long, value_name = "NAME", conflicts_with = "tensors")]
    tensor: Option<String>,

    /// Print the full value of one metadata key, such as the chat template or the tokens (one per line)
    #[arg(long, value_name = "KEY", conflicts_with_all = ["tensors", "tensor"])]
    key: Option<String>,

    /// Do not shorten long texts and arrays
    #[arg(long)]
    full: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    out::to_stdout(|out| inspect(&args, out))
}

fn inspect(args: &Args, out: &mut Out) -> anyhow::Result<()> {
    match find(&args.model)? {
        Found::Gguf(path) => inspect_gguf(&path, args, out),
        Found::Checkpoint(path) => inspect_folder(&path, args, out),
    }
}

enum Found {
    Gguf(PathBuf),
    Checkpoint(PathBuf),
}

/// Finds what lies at `path`. A folder that has one GGUF model and no `config.json` stands for that model.
fn find(path: &Path) -> anyhow::Result<Found> {
    if !path.is_dir() {
        let checkpoint = path.is_file() && path.extension().is_some() && !gguf::is_gguf(path);
        return Ok(if checkpoint { Found::Checkpoint(path.into()) } else { Found::Gguf(path.into()) });
    }
    if path.join("config.json").exists() || Checkpoint::is_adapter(path) {
        return Ok(Found::Checkpoint(path.into()));
    }
    let models = models_in(path).with_context(|| format!("{}: cannot be listed", path.display()))?;
    match models.as_slice() {
        [] => Ok(Found::Checkpoint(path.into())),
        [model] => Ok(Found::Gguf(model.clone())),
        several => {
            let names: Vec<_> =
                several.iter().filter_map(|path| path.file_name()).map(|n| n.to_string_lossy()).collect();
            bail!("{}: holds several GGUF models, name one of them: {}", path.display(), names.join(", "))
        }
    }
}

/// Returns the GGUF files in `folder`, with only the first part of a split model.
pub fn models_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut models = vec![];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let later_part = name.contains("-of-") && !name.contains("-00001-of-");
        if name.ends_with(".gguf") && !later_part {
            models.push(path);
        }
    }
    models.sort();
    Ok(models)
}

/// A Hugging Face folder, or a safetensors file.
fn inspect_folder(path: &Path, args: &Args, out: &mut Out) -> anyhow::Result<()> {
    let adapter = Checkpoint::is_adapter(path);
    let checkpoint = if adapter { Checkpoint::open_adapter(path)? } else { Checkpoint::open(path)? };
    if let Some(key) = &args.key {
        let config = folder::config_name(&checkpoint);
        bail!("{}: --key is for GGUF files; look for '{key}' in {config}", path.display());
    }
    if let Some(name) = &args.tensor {
        let report = folder::report(&checkpoint, name)?;
        return if args.json { json::tensor(&report, out) } else { text::tensor(&report, out) };
    }
    match args.json {
        true => folder::model_json(&checkpoint, out),
        false => folder::model(&checkpoint, args.tensors, args.full, out),
    }
}

fn inspect_gguf(path: &Path, args: &Args, out: &mut Out) -> anyhow::Result<()> {
    let gguf = Gguf::open(path)?;
    if let Some(key) = &args.key {
        return print_key(&gguf, key, args, out);
    }
    if let Some(name) = &args.tensor {
        let index = index_of(&gguf, name)?;
        let report = TensorReport::of(&gguf, index)?;
        return if args.json { json::tensor(&report, out) } else { text::tensor(&report, out) };
    }
    if args.json { json::model(&gguf, args.full, out) } else { text::model(&gguf, args.tensors, args.full, out) }
}

fn print_key(gguf: &Gguf, key: &str, args: &Args, out: &mut Out) -> anyhow::Result<()> {
    let Some(value) = gguf.metadata().get(key) else {
        bail!("no metadata key '{key}'{}", suggestion(key, gguf.metadata().iter().map(|(key, _)| key)));
    };
    if args.json {
        return json::value(value, out);
    }
    let text = text::whole(value);
    // A file or a pipe gets the text as it is, so that a template can be saved and used.
    let text = if out.is_terminal() { printable_lines(&text) } else { text.into() };
    Ok(writeln!(out, "{}", text.trim_end_matches('\n'))?)
}

/// The weights of one tensor.
struct TensorReport<'a> {
    info: TensorInfo,
    file: &'a Path,
    /// Where the tensor begins in that file, in bytes.
    offset: usize,
    n_bytes: usize,
    stats: Stats,
    histogram: Option<Histogram>,
    first: Vec<f32>,
}

impl<'a> TensorReport<'a> {
    const BINS: usize = 16;
    const FIRST: usize = 8;

    fn of(gguf: &'a Gguf, index: usize) -> anyhow::Result<Self> {
        let (map, range) = gguf.location(index);
        Self::new(gguf.tensors()[index].clone(), map, range)
    }

    /// Reads the tensor that lies at `range` of `map`.
    fn new(info: TensorInfo, map: &'a Mapping, range: Range<usize>) -> anyhow::Result<Self> {
        let Some(decode) = quant::decoder(info.ty) else {
            let (name, ty) = (printable(&info.name), info.ty);
            bail!("tensor {name} is {ty}, whose weights nibble cannot read back; it reads {}", quant::type_list());
        };
        let decoder = Decoder { block_len: info.ty.block_len(), block_bytes: info.ty.block_bytes(), decode };
        let data = &map.bytes()[range.clone()];
        map.will_read(range.clone());
        let stats = Stats::of(data, &decoder);
        let histogram = Histogram::of(data, &decoder, &stats, Self::BINS);
        let first = decoder.first(data, Self::FIRST);
        map.release(range.clone());
        Ok(Self { info, file: map.path(), offset: range.start, n_bytes: range.len(), stats, histogram, first })
    }
}

fn index_of(gguf: &Gguf, name: &str) -> anyhow::Result<usize> {
    gguf.index_of(name).with_context(|| {
        format!("no tensor '{name}'{}", suggestion(name, gguf.tensors().iter().map(|info| info.name.as_str())))
    })
}

/// The end of a message about an unknown name: names that come near it.
fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near: Vec<_> = suggest::suggest(name, known).into_iter().map(|name| format!("'{}'", printable(name))).collect();
    match suggest::question(&near) {
        None => "; run 'nibble inspect' without it to see what there is".to_string(),
        Some(question) => format!("; {question}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use clap::Parser;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert};
    use proptest::sample::Index;
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::arch::ARCHITECTURES;
    use crate::checkpoint;
    use crate::gguf::{Layout, Metadata, TensorType, file_name};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn inspect_at(width: Option<u16>, path: &Path, flags: &[&str]) -> anyhow::Result<String> {
        let words = ["inspect".as_ref(), path.as_os_str()].into_iter().chain(flags.iter().map(|flag| flag.as_ref()));
        let command = Command::try_parse_from(words)?;
        let mut text = vec![];
        inspect(&command.args, &mut Out::new(&mut text, width))?;
        Ok(String::from_utf8(text)?)
    }

    fn shown(path: &Path, flags: &[&str]) -> String {
        inspect_at(Some(100), path, flags).unwrap()
    }

    fn refused(path: &Path, flags: &[&str]) -> String {
        format!("{:#}", inspect_at(None, path, flags).expect_err("refused"))
    }

    /// The tensors and data of the bundled checkpoint, as GGUF names and lists them.
    fn yi_nano_tensors() -> (Vec<TensorInfo>, Vec<Vec<u8>>) {
        let checkpoint = checkpoint::testing::yi_nano();
        let shapes = checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
        let model = ARCHITECTURES.describe(checkpoint.config().map(), shapes, |_, _| Ok(false)).unwrap();
        let tensors = model.tensors.into_iter().map(|tensor| {
            let [input] = tensor.inputs() else { panic!("{} has not one input", tensor.name) };
            let source = checkpoint.tensor(input.tensors[0].name()).unwrap();
            let ty = source.float_type().unwrap().into();
            (TensorInfo { name: tensor.name, dims: tensor.dims, ty }, checkpoint.data(source).to_vec())
        });
        tensors.unzip()
    }

    fn yi_nano_metadata() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("general.name", "Yi Nano 零一万物");
        metadata.set("general.file_type", 32u32);
        metadata.set("llama.block_count", 4u32);
        metadata.set("llama.context_length", 512u32);
        metadata.set("llama.embedding_length", 256u32);
        metadata.set("llama.feed_forward_length", 768u32);
        metadata.set("llama.attention.head_count", 4u32);
        metadata.set("llama.attention.head_count_kv", 2u32);
        metadata.set("llama.rope.freq_base", 5e6f32);
        metadata.set("tokenizer.ggml.model", "llama");
        metadata.set("tokenizer.ggml.tokens", (0..6400).map(|n| format!("<{n}>\x1b[31m")).collect::<Vec<_>>());
        metadata.set("tokenizer.ggml.scores", vec![0.5f32; 6400]);
        metadata.set("tokenizer.ggml.eos_token_id", 7u32);
        let template = "{% for message in messages %}\n<|im_start|>{{ message.role }}\x07\n{% endfor %}".repeat(9);
        metadata.set("tokenizer.chat_template", template);
        metadata
    }

    fn yi_nano(folder: &Path, split_max_bytes: Option<u64>) -> PathBuf {
        let (tensors, data) = yi_nano_tensors();
        write(folder, &yi_nano_metadata(), tensors, &data, split_max_bytes)
    }

    fn write(
        folder: &Path,
        metadata: &Metadata,
        tensors: Vec<TensorInfo>,
        data: &[Vec<u8>],
        split_max_bytes: Option<u64>,
    ) -> PathBuf {
        let layout = Layout::new(metadata, tensors, 32, split_max_bytes).unwrap();
        let n_parts = layout.parts().len();
        for part in 0..n_parts {
            let mut file = fs::File::create(folder.join(file_name("model", part, n_parts))).unwrap();
            layout.write_part(part, &mut file, |index| &data[index]).unwrap();
        }
        folder.join(file_name("model", 0, n_parts))
    }

    #[test]
    fn a_model_is_told_in_a_screen() {
        let folder = tempfile::tempdir().unwrap();
        let text = shown(&yi_nano(folder.path(), None), &[]);
        for line in [
            "Name             Yi Nano 零一万物",
            "Architecture     llama, 4 layers, hidden 256, feed-forward 768, 4 heads sharing 2 of keys and values",
            "Context          512 tokens; 1.05 MB of memory when full, at 16 bits",
            "Vocabulary       6400 tokens",
            "Bits per weight  16.00 (BF16)",
            "Metadata, 15 keys",
            "Tensors, 39 (fastest dimension first)",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let q = text.lines().find(|line| line.starts_with("blk.*.attn_q.weight")).unwrap();
        assert_eq!(
            q.split_whitespace().collect::<Vec<_>>().join(" "),
            "blk.*.attn_q.weight 0-3 x4 256 x 256 BF16 524.29 kB"
        );
        let eos = text.lines().find(|line| line.starts_with("tokenizer.ggml.eos_token_id")).unwrap();
        assert!(eos.ends_with(r#"7 ("<7>\u{1b}[31m")"#), "{eos}");
        assert!(
            text.contains("tokenizer.ggml.tokens") && text.contains("str[6400]") && !text.contains("<4>"),
            "{text}"
        );
        assert!(text.lines().count() < 60, "{text}");
    }

    #[test]
    fn every_tensor_is_listed_where_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let text = shown(&yi_nano(folder.path(), None), &["--tensors"]);
        for layer in 0..4 {
            assert!(text.contains(&format!("\nblk.{layer}.ffn_down.weight ")), "{text}");
        }
        assert!(!text.contains("blk.*"));
    }

    #[test]
    fn nothing_from_the_file_drives_the_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let mut metadata = yi_nano_metadata();
        metadata.set("evil\x1b]0;title\x07", "\u{202e}\r\n\x1b[2J");
        let name = "blk.0.\x1b[1m.weight";
        let tensors = vec![TensorInfo { name: name.into(), dims: vec![1], ty: TensorType::F32 }];
        let path = write(folder.path(), &metadata, tensors, &[vec![0; 4]], None);
        for flags in [&[][..], &["--tensors"], &["--full"]] {
            let text = shown(&path, flags);
            let drives = text.chars().find(|&c| c != '\n' && crate::base::display::is_unprintable(c));
            assert_eq!(drives, None, "{flags:?}: {text:?}");
            assert!(text.contains("evil\\u{1b}]0;title\\u{7}"), "{text}");
        }
        assert!(!shown(&path, &["--json"]).contains('\x1b'));
    }

    #[test]
    fn narrow_terminals_get_narrow_tables() {
        let folder = tempfile::tempdir().unwrap();
        let path = yi_nano(folder.path(), None);
        for width in [40, 50, 60, 80] {
            for flags in [&[][..], &["--tensors"]] {
                let text = inspect_at(Some(width), &path, flags).unwrap();
                let widest = text.lines().map(|line| line.width()).max().unwrap();
                assert!(widest <= width.into(), "{widest} of {width}:\n{text}");
            }
        }
    }

    #[test]
    fn json_holds_everything_and_arrays_only_in_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = yi_nano(folder.path(), Some(4_000_000));
        let json: serde_json::Value = serde_json::from_str(&shown(&path, &["--json"])).unwrap();
        assert_eq!(json["name"], "Yi Nano 零一万物");
        assert_eq!(json["tensors"].as_array().unwrap().len(), 39);
        assert!(json["files"].as_array().unwrap().len() > 1);
        assert_eq!(json["kv_bytes_per_token_f16"], 2048);
        let tokens = &json["metadata"]["tokenizer.ggml.tokens"];
        assert_eq!(tokens, &serde_json::json!({ "type": "arr", "element_type": "str", "count": 6400 }));
        assert_eq!(json["metadata"]["llama.rope.freq_base"], serde_json::json!({ "type": "f32", "value": 5e6 }));

        let full: serde_json::Value = serde_json::from_str(&shown(&path, &["--json", "--full"])).unwrap();
        assert_eq!(full["metadata"]["tokenizer.ggml.tokens"]["value"][7], "<7>\x1b[31m");
        assert_eq!(full["metadata"]["tokenizer.ggml.scores"]["value"][0], 0.5);

        // Each tensor's bytes are where the JSON says, whichever file they are in.
        let (infos, data) = yi_nano_tensors();
        for (index, tensor) in json["tensors"].as_array().unwrap().iter().enumerate() {
            assert_eq!(tensor["name"], infos[index].name);
            let file = &json["files"][tensor["file"].as_u64().unwrap() as usize]["path"];
            let bytes = fs::read(file.as_str().unwrap()).unwrap();
            let start = tensor["offset"].as_u64().unwrap() as usize;
            assert_eq!(bytes[start..][..tensor["bytes"].as_u64().unwrap() as usize], data[index]);
        }
    }

    #[test]
    fn one_key_is_printed_whole_and_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = yi_nano(folder.path(), None);
        let metadata = yi_nano_metadata();
        let template = metadata.str("tokenizer.chat_template").unwrap();
        assert_eq!(shown(&path, &["--key", "tokenizer.chat_template"]), format!("{template}\n"));
        assert_eq!(shown(&path, &["--key", "tokenizer.ggml.tokens"]).lines().count(), 6400);
        assert_eq!(shown(&path, &["--key", "llama.block_count", "--json"]), "4\n");
        let message = refused(&path, &["--key", "tokenizer.chat_templat"]);
        assert_eq!(message, "no metadata key 'tokenizer.chat_templat'; did you mean 'tokenizer.chat_template'?");
    }

    #[test]
    fn a_tensors_statistics_are_those_of_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        let weights: Vec<f32> = (0..64).map(|n| n as f32 / 8.0 - 4.0).collect();
        let data = vec![weights.iter().flat_map(|w| w.to_le_bytes()).collect(), vec![0; 110]];
        let tensors = vec![
            TensorInfo { name: "a.weight".into(), dims: vec![8, 8], ty: TensorType::F32 },
            TensorInfo { name: "b.weight".into(), dims: vec![256], ty: TensorType::IQ3_S },
        ];
        let path = write(folder.path(), &Metadata::new(), tensors, &data, None);
        if quant::format(TensorType::F32).is_some() {
            let text = shown(&path, &["--tensor", "a.weight"]);
            let lines: Vec<_> =
                text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            for wanted in ["Min -4.0000 at row 0, column 0", "Max 3.8750 at row 7, column 7", "Zeros 1 (1.56%)"] {
                assert!(lines.iter().any(|line| line == wanted), "{wanted}\n{text}");
            }
            let json: serde_json::Value =
                serde_json::from_str(&shown(&path, &["--tensor", "a.weight", "--json"])).unwrap();
            assert_eq!(json["mean"], -0.0625);
            assert_eq!(json["max"], serde_json::json!({ "value": 3.875, "index": 63, "at": [7, 7] }));
            assert_eq!(json["histogram"]["counts"], serde_json::json!(vec![4; 16]));
        } else {
            assert!(refused(&path, &["--tensor", "a.weight"]).contains("nibble cannot read back"));
        }
        let message = refused(&path, &["--tensor", "b.weight"]);
        assert!(message.starts_with("tensor b.weight is IQ3_S, whose weights nibble cannot read back"), "{message}");
    }

    #[test]
    fn unknown_tensors_get_the_names_that_come_near() {
        let folder = tempfile::tempdir().unwrap();
        let path = yi_nano(folder.path(), None);
        let message = refused(&path, &["--tensor", "blk.1.attn_k.wieght"]);
        assert!(
            message.starts_with("no tensor 'blk.1.attn_k.wieght'; did you mean 'blk.1.attn_k.weight'"),
            "{message}"
        );
        let message = refused(&path, &["--tensor", "token_embd"]);
        assert_eq!(message, "no tensor 'token_embd'; did you mean 'token_embd.weight'?");
        let message = refused(&path, &["--tensor", "completely-different-name"]);
        assert!(message.ends_with("run 'nibble inspect' without it to see what there is"), "{message}");
    }

    #[test]
    fn a_folder_with_one_model_stands_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = yi_nano(folder.path(), Some(4_000_000));
        assert_eq!(shown(folder.path(), &[]), shown(&path, &[]));
        fs::write(folder.path().join("other.gguf"), b"").unwrap();
        let message = refused(folder.path(), &[]);
        assert!(message.contains("several GGUF models") && message.contains("other.gguf"), "{message}");
    }

    proptest::proptest! {
        #[test]
        fn a_damaged_file_is_shown_or_refused(flips in vec((any::<Index>(), any::<u8>()), 1..6)) {
            let mut metadata = yi_nano_metadata();
            metadata.set("tokenizer.ggml.tokens", vec!["a".to_string(), "b".to_string()]);
            metadata.set("tokenizer.ggml.scores", vec![0.5f32; 2]);
            let tensors = (0..3)
                .map(|n| TensorInfo { name: format!("blk.{n}.w"), dims: vec![4, 2], ty: TensorType::F32 })
                .collect();
            let layout = Layout::new(&metadata, tensors, 32, None).unwrap();
            let mut file = vec![];
            layout.write_part(0, &mut file, |index| [index as u8 * 50; 32]).unwrap();
            for (index, byte) in flips {
                *index.get_mut(&mut file) = byte;
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("damaged.gguf");
            fs::write(&path, file).unwrap();
            for flags in [&[][..], &["--tensors", "--full"], &["--json", "--full"], &["--tensor", "blk.1.w"]] {
                match inspect_at(Some(60), &path, flags) {
                    Ok(text) => prop_assert!(!text.contains('\x1b')),
                    Err(error) => prop_assert!(!error.to_string().contains('\x1b')),
                }
            }
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_told_as_such() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = yi_nano(folder.path(), None);
        for flags in [&[][..], &["--json"], &["--key", "general.name"]] {
            let words = ["inspect".as_ref(), path.as_os_str()].into_iter().chain(flags.iter().map(|f| f.as_ref()));
            let args = Command::try_parse_from(words).unwrap().args;
            let error = inspect(&args, &mut Out::new(&mut Gone, None)).unwrap_err();
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            assert_eq!(kind, Some(io::ErrorKind::BrokenPipe), "{flags:?}");
        }
    }
}
