//! Rotary embedding beyond the context a model was first trained on: in a configuration, and in GGUF.
//!
//! ```text
//! config.json         GGUF                                              exact
//! none, default       nothing                                           yes
//! linear              rope.scaling.type, .factor                        yes
//! yarn                the same, .original_context_length, .attn_factor  yes
//! yarn, other ramps   tensor rope_freqs.weight, .attn_factor            yes
//! llama3              tensor rope_freqs.weight                          yes
//! dynamic             nothing                                           up to the model's context, with a warning
//! ```
//!
//! Sources: transformers `modeling_rope_utils.py` (what the configuration means), llama.cpp `load_hparams`,
//! `llama_context` and `ggml_rope_yarn_corr_dims` (what the keys do), YaRN <https://arxiv.org/abs/2309.00071>.

use serde_json::{Map, Value, json};

use super::Error;
use super::config::Config;
use crate::gguf::{self, Metadata};

/// Rotations over the original context above which YaRN leaves a frequency alone; the only value llama.cpp has for
/// the `llama` architecture.
const YARN_BETA_FAST: f64 = 32.0;
/// Rotations below which YaRN slows a frequency by the whole factor.
const YARN_BETA_SLOW: f64 = 1.0;

/// How rotary frequencies are slowed for a context longer than the original one.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Slow frequencies divided, fast ones kept, a ramp between; attention scaled.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Tokens that the frequencies were first trained for.
        original_context: u32,
        /// The factor of cosine and sine; `0.1 ln(factor) + 1` if the configuration does not say.
        attention_factor: f64,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole channels.
        truncate: bool,
    },
    /// Llama 3.1's: long wavelengths divided, short ones kept, a smooth change between.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above the original context divided by this are divided.
        low_freq_factor: f64,
        /// Wavelengths below the original context divided by this are kept.
        high_freq_factor: f64,
        /// Tokens that the frequencies were first trained for.
        original_context: u32,
    },
    /// The base grows with the text once that is longer than the model's context. GGUF has no word for it.
    Dynamic {
        /// At least 1.
        factor: f64,
    },
}

/// The mean attention temperature of YaRN: `0.1 m ln(factor) + 1`.
fn yarn_attention(factor: f64, m: f64) -> f64 {
    0.1 * m * factor.ln() + 1.0
}

/// Reads `rope_parameters` (transformers 5), or `rope_scaling` with `rope_theta` beside it (before).
///
/// Returns theta, which is `default_theta` if the configuration has none, and the scaling.
pub(super) fn parse(
    config: &Config<'_>,
    context: u32,
    default_theta: f64,
) -> Result<(f64, Option<RopeScaling>), Error> {
    let wanted = "a number above 1";
    let beside = config.number("rope_theta", 1.0, wanted)?;
    let newer = config.object("rope_parameters", "rope_parameters.")?;
    let older = config.object("rope_scaling", "rope_scaling.")?;
    let inner = newer.as_ref().map_or(Ok(None), |rope| rope.number("rope_theta", 1.0, wanted))?;
    let theta = inner.or(beside).unwrap_or(default_theta);
    // `rope_parameters` may be there for theta alone, and the scaling still in its old place.
    let scales = |rope: &Config<'_>| ["rope_type", "type", "factor"].iter().any(|key| rope.get(key).is_some());
    let Some(rope) = newer.filter(|rope| older.is_none() || scales(rope)).or(older) else { return Ok((theta, None)) };
    if let Some((key, _)) = rope.keys().find(|(_, value)| value.is_object()) {
        return Err(rope.bad(key, "one set of values for all layers"));
    }
    if rope.number("partial_rotary_factor", 0.0, "1")?.is_some_and(|part| part != 1.0) {
        return Err(rope.bad("partial_rotary_factor", "1: llama.cpp rotates whole heads of these models"));
    }
    let theta = rope.number("rope_theta", 1.0, wanted)?.unwrap_or(theta);
    Ok((theta, scaling(config, &rope, context)?))
}

fn scaling(config: &Config<'_>, rope: &Config<'_>, context: u32) -> Result<Option<RopeScaling>, Error> {
    let (key, kind) = match (rope.str("rope_type")?, rope.str("type")?) {
        (Some(kind), _) => ("rope_type", kind),
        (None, Some(kind)) => ("type", kind),
        // A factor without a type would be lost in silence.
        (None, None) if rope.get("factor").is_some() => {
            return Err(Error::MissingKey {
                key: "rope_scaling.rope_type".into(),
                wanted: "'linear', 'yarn' or 'llama3'",
            });
        }
        (None, None) => return Ok(None),
    };
    let original = match rope.size("original_max_position_embeddings")? {
        Some(original) => Some(original),
        None => config.size("original_max_position_embeddings")?,
    };
    let factor = || rope.required("factor", rope.factor("factor")?, "a number that is at least 1");
    Ok(Some(match kind {
        "default" | "none" => return Ok(None),
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()? },
        "llama3" => {
            let wanted = "a number above 0";
            let low_freq_factor = rope.number("low_freq_factor", 0.0, wanted)?.unwrap_or(1.0);
            let high_freq_factor = rope.number("high_freq_factor", 0.0, wanted)?.unwrap_or(4.0);
            if low_freq_factor >= high_freq_factor {
                return Err(rope.bad("high_freq_factor", "a number above 'low_freq_factor'"));
            }
            // 8192 is the default of llama.cpp's converter; every Llama 3 says 8192.
            let original_context = original.unwrap_or(8192);
            RopeScaling::Llama3 { factor: factor()?, low_freq_factor, high_freq_factor, original_context }
        }
        "yarn" => {
            let factor = match (rope.factor("factor")?, original) {
                (Some(factor), _) => factor,
                (None, Some(original)) if original <= context => f64::from(context) / f64::from(original),
                (None, _) => factor()?,
            };
            let wanted = "a number above 0";
            let m = rope.number("mscale", 0.0, wanted)?.zip(rope.number("mscale_all_dim", 0.0, wanted)?);
            let attention_factor = match (rope.number("attention_factor", 0.0, wanted)?, m) {
                (Some(given), _) => given,
                (None, Some((m, all))) => yarn_attention(factor, m) / yarn_attention(factor, all),
                (None, None) => yarn_attention(factor, 1.0),
            };
            let beta_fast = rope.number("beta_fast", 0.0, wanted)?.unwrap_or(YARN_BETA_FAST);
            let beta_slow = rope.number("beta_slow", 0.0, wanted)?.unwrap_or(YARN_BETA_SLOW);
            if beta_fast < beta_slow {
                return Err(rope.bad("beta_fast", "a number that is at least 'beta_slow'"));
            }
            RopeScaling::Yarn {
                factor,
                original_context: original.unwrap_or(context),
                attention_factor,
                beta_fast,
                beta_slow,
                truncate: rope.bool("truncate")?.unwrap_or(true),
            }
        }
        _ => return Err(rope.bad(key, "'default', 'linear', 'dynamic', 'yarn' or 'llama3'")),
    }))
}

impl RopeScaling {
    /// Returns whether llama.cpp's YaRN does exactly this: its loader reads no ramp for the `llama` architecture.
    fn is_llama_cpp_yarn(&self) -> bool {
        matches!(*self, Self::Yarn { beta_fast, beta_slow, truncate: true, .. }
            if beta_fast == YARN_BETA_FAST && beta_slow == YARN_BETA_SLOW)
    }

    /// Sets the keys under `rope.scaling` that llama.cpp reads, with the `architecture`'s prefix. Factors go into a tensor,
    /// see [`Self::factors`].
    pub(super) fn set_metadata(&self, architecture: &str, metadata: &mut Metadata) {
        let mut set = |key: &str, value: gguf::Value| metadata.set(format!("{architecture}.rope.scaling.{key}"), value);
        match *self {
            Self::Linear { factor } => {
                set("type", "linear".into());
                set("factor", (factor as f32).into());
            }
            Self::Yarn { factor, original_context, attention_factor, .. } if self.is_llama_cpp_yarn() => {
                set("type", "yarn".into());
                set("factor", (factor as f32).into());
                set("original_context_length", original_context.into());
                // llama.cpp multiplies its own attention factor with this one. The converter's `yarn_attn_factor`
                // would say the same, but the loader does not read it for this architecture.
                let rest = (attention_factor / yarn_attention(factor, 1.0)) as f32;
                if rest != 1.0 {
                    set("attn_factor", rest.into());
                }
            }
            // With no type, llama.cpp's own attention factor is 1.
            Self::Yarn { attention_factor, .. } => set("attn_factor", (attention_factor as f32).into()),
            Self::Llama3 { .. } | Self::Dynamic { .. } => {}
        }
    }

    /// Returns the divisors of a head's `head_dim / 2` rotary frequencies: the data of `rope_freqs.weight`. `None` if the
    /// metadata say everything.
    pub fn factors(&self, theta: f64, head_dim: u32) -> Option<Vec<f32>> {
        let channels = (0..head_dim).step_by(2);
        match *self {
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let original = original_context as f32;
                // Single precision in the converter's order of operations. Only the power is taken in double
                // precision and rounded: a single precision power differs from one C library to the next.
                let change = |channel: u32| {
                    let power = theta.powf(f64::from(channel as f32 / head_dim as f32)) as f32;
                    let wavelength = std::f32::consts::TAU * (1.0 / (1.0 / power));
                    if f64::from(wavelength) < f64::from(original_context) / high_freq_factor {
                        1.0
                    } else if f64::from(wavelength) > f64::from(original_context) / low_freq_factor {
                        factor as f32
                    } else {
                        let smooth = (original * (1.0 / wavelength) - low_freq_factor as f32)
                            / (high_freq_factor - low_freq_factor) as f32;
                        1.0 / ((1.0 - smooth) / factor as f32 + smooth)
                    }
                };
                Some(channels.map(change).collect())
            }
            Self::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. }
                if !self.is_llama_cpp_yarn() =>
            {
                // The channel pair that makes this many rotations over the original context.
                let pair = |rotations: f64| {
                    let per_radian = f64::from(original_context) / (rotations * std::f64::consts::TAU);
                    f64::from(head_dim) * per_radian.ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(f64::from(head_dim) - 1.0));
                if low == high {
                    high += 0.001;
                }
                let divided = |channel: u32| ((f64::from(channel / 2) - low) / (high - low)).clamp(0.0, 1.0);
                Some(channels.map(|c| (1.0 / (divided(c) / factor + 1.0 - divided(c))) as f32).collect())
            }
            _ => None,
        }
    }

    /// Returns the scaling as `config.json` has it under `rope_scaling`.
    pub(super) fn to_config(&self) -> Value {
        let mut map = Map::new();
        let mut set = |key: &str, value: Value| map.insert(key.to_string(), value);
        match *self {
            Self::Linear { factor } => {
                set("rope_type", json!("linear"));
                set("factor", json!(factor));
            }
            Self::Dynamic { factor } => {
                set("rope_type", json!("dynamic"));
                set("factor", json!(factor));
            }
            Self::Yarn { factor, original_context, attention_factor, beta_fast, beta_slow, truncate } => {
                set("rope_type", json!("yarn"));
                set("factor", json!(factor));
                set("original_max_position_embeddings", json!(original_context));
                set("attention_factor", json!(attention_factor));
                set("beta_fast", json!(beta_fast));
                set("beta_slow", json!(beta_slow));
                set("truncate", json!(truncate));
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                set("rope_type", json!("llama3"));
                set("factor", json!(factor));
                set("low_freq_factor", json!(low_freq_factor));
                set("high_freq_factor", json!(high_freq_factor));
                set("original_max_position_embeddings", json!(original_context));
            }
        }
        Value::Object(map)
    }
}
