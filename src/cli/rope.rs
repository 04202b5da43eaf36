//! Flags for contexts that are longer than what a model was trained on, with llama.cpp's names.

use clap::ValueEnum;

use crate::llama::{RopeOptions, RopeScaling};

/// How positions are encoded.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct RopeArgs {
    /// Read longer texts than the model was trained on: yarn divides slow frequencies of the positions by --rope-scale, and linear
    /// all of them [default: as the model says]
    ///
    /// It costs quality, on short texts too, and none of it is needed for models whose file says how far they reach: 'nibble inspect'
    /// shows it. 'nibble compare', with a trace of the same file, measures what it costs.
    #[arg(long, value_name = "none|linear|yarn", value_enum, hide_possible_values = true, help_heading = "Machine")]
    rope_scaling: Option<Scaling>,

    /// So many times as many tokens as the model was trained on
    #[arg(long, value_name = "N", help_heading = "Machine", conflicts_with = "rope_freq_scale")]
    rope_scale: Option<f32>,

    /// The base of the positions' frequencies [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    rope_freq_base: Option<f32>,

    /// What positions are multiplied with: 1 / --rope-scale
    #[arg(long, value_name = "N", help_heading = "Machine")]
    rope_freq_scale: Option<f32>,

    /// YaRN: tokens that the model was first trained on [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    yarn_orig_ctx: Option<u32>,

    /// YaRN: how much is extrapolated, from 0 to 1 [default: the model's, or 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    yarn_ext_factor: Option<f32>,

    /// YaRN: what attention is multiplied with [default: the model's, or 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    yarn_attn_factor: Option<f32>,

    /// YaRN: turns below which a frequency is interpolated [default: the model's, or 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    yarn_beta_slow: Option<f32>,

    /// YaRN: turns above which a frequency is left as it is [default: the model's, or 32]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    yarn_beta_fast: Option<f32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scaling {
    None,
    Linear,
    Yarn,
}

impl RopeArgs {
    /// Returns how positions are encoded.
    pub fn options(&self) -> RopeOptions {
        RopeOptions {
            scaling: self.rope_scaling.map(|scaling| match scaling {
                Scaling::None => RopeScaling::None,
                Scaling::Linear => RopeScaling::Linear,
                Scaling::Yarn => RopeScaling::Yarn,
            }),
            factor: self.rope_scale.or_else(|| self.rope_freq_scale.map(f32::recip)),
            base: self.rope_freq_base,
            original_ctx: self.yarn_orig_ctx,
            ext_factor: self.yarn_ext_factor,
            attn_factor: self.yarn_attn_factor,
            beta_fast: self.yarn_beta_fast,
            beta_slow: self.yarn_beta_slow,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RopeArgs,
    }

    #[test]
    fn llama_cpps_flags_mean_what_they_mean_there() {
        let options = |line: &str| {
            let words = std::iter::once("run").chain(line.split_whitespace());
            Line::try_parse_from(words).map(|line| line.args.options())
        };
        assert_eq!(options("").unwrap(), RopeOptions::default());
        let yarn = options("--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 4096 --rope-freq-base 1e6").unwrap();
        assert_eq!((yarn.scaling, yarn.factor), (Some(RopeScaling::Yarn), Some(4.0)));
        assert_eq!((yarn.original_ctx, yarn.base), (Some(4096), Some(1e6)));
        assert_eq!(options("--rope-freq-scale 0.25").unwrap().factor, Some(4.0));
        assert!(options("--rope-scale 4 --rope-freq-scale 0.25").is_err() && options("--rope-scaling ntk").is_err());
    }
}
