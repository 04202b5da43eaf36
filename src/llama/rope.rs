//! How positions are encoded in contexts that are longer than what a model was trained on.

use std::fmt;

use llama_cpp_sys_2 as sys;

use super::Error;

/// How positions are encoded. What is `None` is as the model says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RopeOptions {
    /// The method.
    pub scaling: Option<RopeScaling>,
    /// So many times as many tokens as the model was trained on. Positions are divided by it, above 0.
    pub factor: Option<f32>,
    /// The base of the frequencies, above 0.
    pub base: Option<f32>,
    /// YaRN: tokens that the model was first trained on.
    pub original_ctx: Option<u32>,
    /// YaRN: how much of the frequencies in between is extrapolated, from 0 to 1.
    pub ext_factor: Option<f32>,
    /// YaRN: what attention is multiplied with.
    pub attn_factor: Option<f32>,
    /// YaRN: turns in the original context above which frequencies are left as they are.
    pub beta_fast: Option<f32>,
    /// YaRN: turns in the original context below which they are interpolated.
    pub beta_slow: Option<f32>,
}

/// A way of encoding positions that the model was not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeScaling {
    /// As they are, whatever the model says.
    None,
    /// All positions are divided by the factor.
    Linear,
    /// Slow frequencies are, and fast ones are not: YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn,
}

impl RopeOptions {
    /// Returns whether everything is as the model says.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns how many tokens a model can read of which so many were its training's.
    pub fn n_ctx(&self, n_ctx_train: u32) -> u32 {
        let factor = self.factor.filter(|factor| *factor > 1.0 && self.scaling != Some(RopeScaling::None));
        // The cast saturates.
        factor.map_or(n_ctx_train, |factor| (f64::from(n_ctx_train) * f64::from(factor)) as u32)
    }

    /// # Errors
    /// [`Error::Rope`] if a number is out of range.
    pub(super) fn check(&self) -> Result<(), Error> {
        let above = [("the factor", self.factor), ("the base", self.base)];
        let from = [
            ("the extrapolation factor", self.ext_factor),
            ("the attention factor", self.attn_factor),
            ("the number of fast turns", self.beta_fast),
            ("the number of slow turns", self.beta_slow),
        ];
        for (what, value) in above {
            // llama.cpp takes 0 for the model's own.
            if let Some(value) = value.filter(|value| !value.is_finite() || *value <= 0.0) {
                return Err(Error::Rope { what, value, wanted: "above 0" });
            }
        }
        for (what, value) in from {
            // And what is negative.
            if let Some(value) = value.filter(|value| !value.is_finite() || *value < 0.0) {
                return Err(Error::Rope { what, value, wanted: "0 or more" });
            }
        }
        Ok(())
    }

    pub(super) fn ask(&self, params: &mut sys::llama_context_params) {
        params.rope_scaling_type = match self.scaling {
            None => params.rope_scaling_type,
            Some(RopeScaling::None) => sys::LLAMA_ROPE_SCALING_TYPE_NONE,
            Some(RopeScaling::Linear) => sys::LLAMA_ROPE_SCALING_TYPE_LINEAR,
            Some(RopeScaling::Yarn) => sys::LLAMA_ROPE_SCALING_TYPE_YARN,
        };
        params.rope_freq_scale = self.factor.map_or(params.rope_freq_scale, f32::recip);
        params.rope_freq_base = self.base.unwrap_or(params.rope_freq_base);
        params.yarn_orig_ctx = self.original_ctx.unwrap_or(params.yarn_orig_ctx);
        params.yarn_ext_factor = self.ext_factor.unwrap_or(params.yarn_ext_factor);
        params.yarn_attn_factor = self.attn_factor.unwrap_or(params.yarn_attn_factor);
        params.yarn_beta_fast = self.beta_fast.unwrap_or(params.yarn_beta_fast);
        params.yarn_beta_slow = self.beta_slow.unwrap_or(params.yarn_beta_slow);
    }
}

/// In words, for what depends on it: `as the model says`, or `yarn, factor 4`.
impl fmt::Display for RopeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.scaling.map(|scaling| format!("{scaling:?}").to_lowercase()));
        let numbers = [
            ("factor", self.factor),
            ("base", self.base),
            ("ext", self.ext_factor),
            ("attention", self.attn_factor),
            ("fast", self.beta_fast),
            ("slow", self.beta_slow),
        ];
        words.extend(numbers.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?))));
        words.extend(self.original_ctx.map(|n| format!("of {n} tokens")));
        if words.is_empty() {
            words.push("as the model says".to_string());
        }
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_left_to_the_model() {
        // SAFETY: takes nothing, returns a struct.
        let mut params = unsafe { sys::llama_context_default_params() };
        let facts = |p: &sys::llama_context_params| {
            let yarn = (p.yarn_ext_factor, p.yarn_attn_factor, p.yarn_beta_fast, p.yarn_beta_slow, p.yarn_orig_ctx);
            (p.rope_scaling_type, p.rope_freq_scale, p.rope_freq_base, yarn)
        };
        let before = facts(&params);
        RopeOptions::default().ask(&mut params);
        assert_eq!(facts(&params), before);
        let scaling = Some(RopeScaling::Yarn);
        RopeOptions { scaling, factor: Some(4.0), original_ctx: Some(9), ..RopeOptions::default() }.ask(&mut params);
        assert_eq!((params.rope_scaling_type, params.rope_freq_scale), (sys::LLAMA_ROPE_SCALING_TYPE_YARN, 0.25));
        assert_eq!((params.yarn_orig_ctx, params.yarn_ext_factor), (9, before.3.0));
    }

    #[test]
    fn numbers_that_mean_something_else_to_llama_cpp_are_refused() {
        let of = |factor, ext_factor| RopeOptions { factor, ext_factor, ..RopeOptions::default() };
        assert!(of(Some(4.0), Some(0.0)).check().is_ok());
        for wrong in [of(Some(0.0), None), of(Some(f32::NAN), None), of(Some(-1.0), None), of(None, Some(-1.0))] {
            assert!(wrong.check().is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_is_said_in_words_and_in_tokens() {
        assert_eq!(RopeOptions::default().to_string(), "as the model says");
        let yarn = RopeOptions { scaling: Some(RopeScaling::Yarn), factor: Some(2.5), ..RopeOptions::default() };
        assert_eq!((yarn.to_string().as_str(), yarn.n_ctx(4096)), ("yarn, factor 2.5", 10_240));
        assert_eq!(RopeOptions { scaling: Some(RopeScaling::None), ..yarn }.n_ctx(4096), 4096);
    }
}
