//! `nibble quants`

/// List the recipes, with bits per weight and the size each gives
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
