//! `nibble inspect`

/// Show what is inside a GGUF file or a Hugging Face folder
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
