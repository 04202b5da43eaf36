//! `nibble convert`

/// Convert a Hugging Face folder, or a 16-bit GGUF, to a quantized GGUF
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
