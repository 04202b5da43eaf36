//! The chain of samplers that parameters ask for.

use std::sync::Arc;

use super::dry::{Breakers, Dry};
use super::{Candidates, Error, Marks, Params, Random, SamplerKind};
use crate::base::math::ln;

/// What stages need besides the candidates.
pub struct Context<'a> {
    /// The text so far, at least as far back as [`Chain::looks_back`].
    pub history: &'a [u32],
    /// To be cleared before use.
    pub marks: &'a mut Marks,
    /// The sampler's stream.
    pub random: &'a mut Random,
}

/// One step between logits and the draw.
#[derive(Clone, Debug)]
enum Stage {
    /// Add to logits. Each token comes once.
    LogitBias(Arc<Vec<(u32, f32)>>),
    /// Make tokens less likely that were there.
    ///
    /// Source: Keskar et al., "CTRL", <https://arxiv.org/abs/1909.05858>, and OpenAI's API for the other two.
    Penalties { last_n: usize, repeat: f32, frequency: f32, presence: f32 },
    /// Make tokens less likely that go on with a repetition.
    Dry(Dry),
    /// Keep those at most so many standard deviations below the highest.
    ///
    /// Source: Tang et al., "Top-nσ: Not All Logits Are You Need", <https://arxiv.org/abs/2411.07641>
    TopNSigma(f64),
    /// Keep the `k` most likely; ties go to the lower id.
    TopK(usize),
    /// Keep those as surprising as is to be expected.
    ///
    /// Source: Meister et al., "Locally Typical Sampling", <https://arxiv.org/abs/2202.00666>
    TypicalP { p: f64, min_keep: usize },
    /// Keep the most likely ones until their probabilities, among what was left before, add up to `p`.
    ///
    /// Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", <https://arxiv.org/abs/1904.09751>
    TopP { p: f64, min_keep: usize },
    /// Keep those at least this likely, relative to the most likely one.
    ///
    /// Source: Nguyen et al., "Turning Up the Heat", <https://arxiv.org/abs/2407.01082>
    MinP { p: f64, min_keep: usize },
    /// Now and then exclude all but the least likely of those that are likely.
    ///
    /// Source: <https://github.com/oobabooga/text-generation-webui/pull/6335>
    Xtc { probability: f64, threshold: f64, min_keep: usize },
    /// Divide the logits by this.
    Temperature(f64),
    /// Divide the logits by something between these, by how uncertain the model is.
    ///
    /// Source: Zhu et al., "Hot or Cold?", <https://arxiv.org/abs/2309.02772>
    DynamicTemperature { low: f64, high: f64, exponent: f64 },
    /// Take the most likely.
    MostLikely,
    /// Keep the surprise near a target: version 1 or 2.
    ///
    /// Source: Basu et al., "Mirostat", <https://arxiv.org/abs/2007.14966>
    Mirostat { version: u32, tau: f64, eta: f64 },
    /// Prefer those near a probability, which is corrected by what was chosen before.
    ///
    /// Source: <https://github.com/ggml-org/llama.cpp/pull/17927>
    AdaptiveP { target: f64, decay: f64 },
}

/// All stages, and what they remember of what was chosen.
#[derive(Clone, Debug)]
pub struct Chain {
    stages: Vec<Stage>,
    // Mirostat: the most surprise that is let through, in bits. Adaptive-p: sums of probabilities and of their weights.
    surprise: f64,
    mean: (f64, f64),
    // The tokens that could have been chosen, and their probabilities, where the last stage learns from the choice.
    pub(super) last: Vec<(u32, f64)>,
}

impl Chain {
    /// The stages that `params` ask for, in the order they are carried out. Those that would change nothing are left out.
    ///
    /// # Errors
    /// Where a parameter lies outside its range.
    pub fn new<'a>(params: &Params, n_tokens: usize, bytes: impl Fn(u32) -> &'a [u8]) -> Result<Self, Error> {
        params.check()?;
        let mut stages = Vec::new();
        if !params.logit_bias.is_empty() {
            let mut biases: Vec<(u32, f32)> = Vec::new();
            for &(token, bias) in &params.logit_bias {
                match biases.iter_mut().find(|(known, _)| *known == token) {
                    Some((_, sum)) => *sum += bias,
                    None => biases.push((token, bias)),
                }
            }
            stages.push(Stage::LogitBias(Arc::new(biases)));
        }
        let mirostat = params.mirostat > 0;
        let order: &[SamplerKind] = if mirostat { &[SamplerKind::Temperature] } else { &params.samplers };
        for kind in order {
            stages.extend(stage(params, *kind, mirostat, n_tokens, &bytes));
        }
        if mirostat {
            let (tau, eta) = (params.mirostat_tau.into(), params.mirostat_eta.into());
            stages.push(Stage::Mirostat { version: params.mirostat, tau, eta });
        } else if params.adaptive_target >= 0.0 {
            let (target, decay) = (params.adaptive_target.into(), params.adaptive_decay.into());
            stages.push(Stage::AdaptiveP { target, decay });
        }
        if let Some(end) = stages.iter().position(|stage| matches!(stage, Stage::MostLikely)) {
            stages.truncate(end + 1);
            // What these take away is never the most likely one, where nothing looks at what they leave.
            let looks = |stage: &Stage| {
                matches!(stage, Stage::Xtc { .. } | Stage::TypicalP { .. } | Stage::DynamicTemperature { .. })
            };
            let cuts = |stage: &Stage| {
                let is_cut =
                    matches!(stage, Stage::TopK(_) | Stage::TopP { .. } | Stage::MinP { .. } | Stage::TopNSigma(_));
                is_cut || matches!(stage, Stage::Temperature(_))
            };
            let changes = stages.iter().rposition(|stage| !cuts(stage) && !matches!(stage, Stage::MostLikely));
            if !stages.iter().any(looks) {
                let mut index = 0;
                stages.retain(|stage| {
                    index += 1;
                    // Before a penalty they do decide: the second most likely may have become the first.
                    !cuts(stage) || changes.is_some_and(|last| index - 1 < last)
                });
            }
        }
        let mut new = Self { stages, surprise: 0.0, mean: (0.0, 0.0), last: Vec::new() };
        new.begin();
        Ok(new)
    }

    /// Whether the most likely token is taken.
    pub fn is_greedy(&self) -> bool {
        matches!(self.stages.last(), Some(Stage::MostLikely))
    }

    /// How many of the last tokens any stage looks at.
    pub fn looks_back(&self) -> usize {
        let far = self.stages.iter().map(|stage| match stage {
            Stage::Penalties { last_n, .. } => *last_n,
            Stage::Dry(dry) => dry.last_n(),
            _ => 0,
        });
        far.max().unwrap_or(0)
    }

    /// Forgets what was chosen.
    pub fn begin(&mut self) {
        self.last.clear();
        match self.stages.last() {
            Some(Stage::Mirostat { tau, .. }) => self.surprise = 2.0 * tau,
            // As if all before had been at the target.
            Some(Stage::AdaptiveP { target, decay }) => self.mean = (target / (1.0 - decay), 1.0 / (1.0 - decay)),
            _ => {}
        }
    }

    /// Learns from the choice. A token that could not have been chosen teaches nothing.
    pub fn accept(&mut self, token: u32) {
        let chosen = self.last.iter().find(|(id, _)| *id == token).map(|(_, p)| *p);
        self.last.clear();
        let Some(p) = chosen else { return };
        match self.stages.last() {
            Some(Stage::Mirostat { tau, eta, .. }) => {
                let surprise = -ln(p) / std::f64::consts::LN_2;
                self.surprise -= eta * (surprise - tau);
            }
            Some(Stage::AdaptiveP { decay, .. }) => {
                self.mean = (p + decay * self.mean.0, 1.0 + decay * self.mean.1);
            }
            _ => {}
        }
    }

    /// Carries out all stages.
    ///
    /// # Errors
    /// Where a logit is NaN or plus infinity, or nothing is left.
    pub fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        self.last.clear();
        for index in 0..self.stages.len() {
            // A min-p that comes next spares top-p the search among what it would take away.
            let floor = match self.stages.get(index + 1) {
                Some(Stage::MinP { p, min_keep: 0 }) => Some(*p),
                _ => None,
            };
            match &mut self.stages[index] {
                Stage::LogitBias(biases) => {
                    context.marks.clear(candidates.n_vocabulary());
                    for (number, (token, _)) in (1..).zip(biases.iter()) {
                        context.marks.update(*token, |_| number);
                    }
                    candidates.change(context.marks, |mark, logit| logit + biases[mark as usize - 1].1)?;
                }
                Stage::Penalties { last_n, repeat, frequency, presence } => {
                    context.marks.clear(candidates.n_vocabulary());
                    for token in &context.history[context.history.len().saturating_sub(*last_n)..] {
                        context.marks.update(*token, |count| count + 1);
                    }
                    candidates.change(context.marks, |count, logit| {
                        // Dividing a negative logit would make the token more likely.
                        let logit = if logit <= 0.0 { logit * *repeat } else { logit / *repeat };
                        (logit - (count as f32 * *frequency + *presence)).max(f32::MIN)
                    })?;
                }
                Stage::Dry(dry) => {
                    context.marks.clear(candidates.n_vocabulary());
                    dry.mark(context.history, context.marks);
                    candidates.change(context.marks, |mark, logit| (logit - dry.penalty(mark)).max(f32::MIN))?;
                }
                Stage::TopNSigma(sigmas) => candidates.top_n_sigma(*sigmas)?,
                Stage::TopK(k) => candidates.top_k(*k)?,
                Stage::TypicalP { p, min_keep } => candidates.typical(*p, *min_keep)?,
                Stage::TopP { p, min_keep } => candidates.top_p(*p, *min_keep, floor)?,
                Stage::MinP { p, min_keep } => candidates.min_p(*p, *min_keep)?,
                Stage::Xtc { probability, threshold, min_keep } => {
                    if candidates.n() >= 2 && context.random.unit() <= *probability {
                        candidates.exclude_top_choices(*threshold, *min_keep)?;
                    }
                }
                Stage::Temperature(t) => candidates.temperature(*t),
                Stage::DynamicTemperature { low, high, exponent } => {
                    candidates.dynamic_temperature(*low, *high, *exponent)?;
                }
                Stage::MostLikely => {}
                Stage::Mirostat { version, .. } => {
                    match version {
                        1 => candidates.zipf(self.surprise)?,
                        _ => candidates.less_surprising_than(self.surprise)?,
                    }
                    candidates.probabilities(&mut self.last)?;
                }
                Stage::AdaptiveP { target, .. } => {
                    candidates.list()?;
                    candidates.probabilities(&mut self.last)?;
                    let (sum, weight) = self.mean;
                    let target = (2.0 * *target - sum / weight).clamp(0.0, 1.0);
                    candidates.replace(|p| adapted(p, target))?;
                }
            }
        }
        Ok(())
    }
}

/// Adaptive-p's logit for a token of probability `p`: a parabola near the target, straight lines further away.
fn adapted(p: f64, target: f64) -> f64 {
    const PEAK: f64 = 5.0;
    const SHARPNESS: f64 = 10.0;
    const WIDTH: f64 = 0.3;
    let distance = ((p - target) / WIDTH).abs();
    PEAK - SHARPNESS * distance * distance / (1.0 + distance)
}

/// The stage of a kind; `None` where it would change nothing.
fn stage<'a>(
    params: &Params,
    kind: SamplerKind,
    mirostat: bool,
    n_tokens: usize,
    bytes: impl Fn(u32) -> &'a [u8],
) -> Option<Stage> {
    let min_keep = params.min_keep as usize;
    let on = |is_on: bool, stage: Stage| is_on.then_some(stage);
    match kind {
        SamplerKind::Penalties => {
            let (repeat, frequency, presence) =
                (params.repeat_penalty, params.frequency_penalty, params.presence_penalty);
            let is_on = params.repeat_last_n > 0 && (repeat != 1.0 || frequency != 0.0 || presence != 0.0);
            let last_n = params.repeat_last_n as usize;
            on(is_on, Stage::Penalties { last_n, repeat, frequency, presence })
        }
        SamplerKind::Dry => {
            let is_on = params.dry_multiplier != 0.0;
            let breakers = match is_on {
                true => Breakers::new(&params.dry_sequence_breakers, n_tokens, bytes),
                false => Breakers::default(),
            };
            Dry::new(params, breakers).map(Stage::Dry)
        }
        SamplerKind::TopNSigma => on(params.top_n_sigma > 0.0, Stage::TopNSigma(params.top_n_sigma.into())),
        SamplerKind::TopK => on(params.top_k > 0, Stage::TopK(params.top_k as usize)),
        SamplerKind::TypicalP => on(params.typical_p < 1.0, Stage::TypicalP { p: params.typical_p.into(), min_keep }),
        SamplerKind::TopP => on(params.top_p < 1.0, Stage::TopP { p: params.top_p.into(), min_keep }),
        SamplerKind::MinP => on(params.min_p > 0.0, Stage::MinP { p: params.min_p.into(), min_keep }),
        SamplerKind::Xtc => {
            let (probability, threshold) = (params.xtc_probability.into(), params.xtc_threshold.into());
            // Two tokens cannot both have more than half of the probability.
            on(
                params.xtc_probability > 0.0 && params.xtc_threshold <= 0.5,
                Stage::Xtc { probability, threshold, min_keep },
            )
        }
        SamplerKind::Temperature => {
            let (t, range) = (f64::from(params.temperature), f64::from(params.dynatemp_range));
            if range > 0.0 && !mirostat {
                let exponent = params.dynatemp_exponent.into();
                return Some(Stage::DynamicTemperature { low: (t - range).max(0.0), high: t + range, exponent });
            }
            if t == 0.0 { Some(Stage::MostLikely) } else { on(t != 1.0, Stage::Temperature(t)) }
        }
        // It comes last, by itself.
        SamplerKind::AdaptiveP => None,
    }
}
