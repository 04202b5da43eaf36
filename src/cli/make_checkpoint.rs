//! `nibble make-checkpoint`, for developers: makes a Hugging Face checkpoint of any shape with random weights, to test
//! at the size of a real model.
//!
//! It is a subcommand that the help does not list. An example would be compiled with the dependencies of the tests, which
//! takes minutes after the program has been built.
//!
//! The weights are drawn from a bell curve with a standard deviation as in trained models (0.02), by a generator with a
//! fixed seed, so that two runs make the same files.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::arch::{ARCHITECTURES, Hyperparameters};
use crate::checkpoint::{DType, safetensors};

/// Make a Hugging Face checkpoint of any shape with random weights
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// The folder to make
    folder: PathBuf,

    /// Start from this model's shapes: 6b, 9b or 34b of Yi
    #[arg(long, default_value = "34b")]
    like: String,

    /// Number of layers [default: the model's]
    #[arg(long)]
    layers: Option<u32>,

    /// Width of the hidden state [default: the model's]
    #[arg(long)]
    hidden: Option<u32>,

    /// Width of the feed-forward layers [default: the model's]
    #[arg(long)]
    ffn: Option<u32>,

    /// Attention heads [default: the model's]
    #[arg(long)]
    heads: Option<u32>,

    /// Heads of keys and values [default: the model's]
    #[arg(long)]
    kv_heads: Option<u32>,

    /// Tokens in the vocabulary [default: the model's]
    #[arg(long)]
    vocab: Option<u32>,

    /// Largest size of a shard, in GB
    #[arg(long, default_value_t = 5.0)]
    shard_gb: f64,

    /// Name things as the first release of Yi did (YiForCausalLM, ln1, ln2)
    #[arg(long)]
    first_release: bool,

    /// Leave the weights of the layers from this one on as holes in the file, which read as zeros and take no room
    #[arg(long, value_name = "LAYER")]
    sparse_from: Option<u32>,

    /// Copy the tokenizer's files from this folder
    #[arg(long, value_name = "FOLDER", overrides_with = "tokenizer")]
    tokenizer: Option<PathBuf>,

    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let hyper = hyperparameters(&args)?;
    let name = if args.first_release { "YiForCausalLM" } else { "LlamaForCausalLM" };
    let config = hyper.to_config(name);
    let architecture = ARCHITECTURES.by_name(name).context("nibble knows both names")?;
    std::fs::create_dir_all(&args.folder).with_context(|| args.folder.display().to_string())?;

    let tensors = architecture.blueprint(&config)?.checkpoint_shapes();
    let shards = cut(&tensors, (args.shard_gb * 1e9) as u64);
    let mut weight_map = serde_json::Map::new();
    let mut total = 0;
    for (i, shard) in shards.iter().enumerate() {
        let file_name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_shard(&args.folder.join(&file_name), shard, &args)?;
        for (name, shape) in *shard {
            weight_map.insert(name.clone(), file_name.clone().into());
            total += n_bytes(shape);
        }
        println!("{file_name}");
    }
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_json(&args.folder.join("model.safetensors.index.json"), &index)?;
    write_json(&args.folder.join("config.json"), &config.into())?;
    for file in ["tokenizer.model", "tokenizer_config.json", "generation_config.json"] {
        let from = args.tokenizer.iter().map(|folder| folder.join(file)).find(|path| path.exists());
        if let Some(from) = from {
            std::fs::copy(&from, args.folder.join(file)).with_context(|| from.display().to_string())?;
        }
    }
    println!("{}: {:.2} GB", args.folder.display(), total as f64 / 1e9);
    Ok(())
}

fn hyperparameters(args: &Args) -> anyhow::Result<Hyperparameters> {
    let named = Hyperparameters::by_name(&format!("Yi-{}", args.like));
    let mut hyper = named.with_context(|| format!("--like {}: write 6b, 9b or 34b", args.like))?;
    hyper.n_layers = args.layers.unwrap_or(hyper.n_layers);
    hyper.hidden = args.hidden.unwrap_or(hyper.hidden);
    hyper.ffn = args.ffn.unwrap_or(hyper.ffn);
    hyper.n_heads = args.heads.unwrap_or(hyper.n_heads);
    hyper.n_kv_heads = args.kv_heads.unwrap_or(hyper.n_kv_heads);
    hyper.vocab = args.vocab.unwrap_or(hyper.vocab);
    hyper.head_dim = hyper.hidden.checked_div(hyper.n_heads).unwrap_or(0);
    hyper.check()?;
    Ok(hyper)
}

fn n_bytes(shape: &[u64]) -> u64 {
    shape.iter().product::<u64>() * 2
}

/// Splits the list of tensors into shards that are not too large. A tensor is never split.
fn cut(tensors: &[(String, Vec<u64>)], max_bytes: u64) -> Vec<&[(String, Vec<u64>)]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, (_, shape)) in tensors.iter().enumerate() {
        if i > start && bytes + n_bytes(shape) > max_bytes {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += n_bytes(shape);
    }
    shards.push(&tensors[start..]);
    shards
}

fn write_shard(path: &Path, tensors: &[(String, Vec<u64>)], args: &Args) -> anyhow::Result<()> {
    let list: Vec<_> = tensors.iter().map(|(name, shape)| (name.clone(), DType::BF16, shape.clone())).collect();
    let mut writer = safetensors::Writer::create(path, &list, &[("format", "pt")])?;
    for (name, shape) in tensors {
        let layer = name.split('.').find_map(|part| part.parse::<u32>().ok());
        let n_weights = shape.iter().product::<u64>();
        if layer.zip(args.sparse_from).is_some_and(|(layer, from)| layer >= from) {
            writer.skip(n_weights * 2)?;
        } else if shape.len() == 1 {
            write_weights(&mut writer, n_weights, |_| 1.0)?;
        } else {
            let mut random = Random::new(args.seed, name);
            write_weights(&mut writer, n_weights, |_| random.bell() * 0.02)?;
        }
    }
    writer.finish()?;
    Ok(())
}

fn write_weights(out: &mut safetensors::Writer, n: u64, mut weight: impl FnMut(u64) -> f32) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 20);
    for i in 0..n {
        // Truncation to bf16 is as good as rounding for random numbers.
        buffer.extend_from_slice(&((weight(i).to_bits() >> 16) as u16).to_le_bytes());
        if buffer.len() == buffer.capacity() {
            out.write(&buffer)?;
            buffer.clear();
        }
    }
    out.write(&buffer)?;
    Ok(())
}

fn write_json(path: &Path, json: &serde_json::Value) -> anyhow::Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(json)?).with_context(|| path.display().to_string())
}

/// SplitMix64, seeded by the tensor's name so that a tensor's weights do not depend on those before it.
struct Random(u64);

impl Random {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal, of variance 1: the sum of four uniform numbers.
    fn bell(&mut self) -> f32 {
        let bits = self.next();
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
        // Each uniform number on [0, 65535] has variance 65536^2 / 12.
        (sum as f32 - 4.0 * 32767.5) / (65536.0 * (4.0f32 / 12.0).sqrt())
    }
}
