//! The chain of stages that the parameters select.

use super::params::{Params, SamplerKind};
use super::samplers::{self, Place, for_each_sampler};
use super::{Candidates, Error, Marks, Random};

/// What a stage needs to know when it is created, besides its settings.
pub struct Surroundings<'a> {
    /// How many tokens must be left by stages that cut by probability.
    pub min_keep: usize,
    /// Whether the stage comes before one that replaces the order; see [`Place::Alone`].
    pub is_alone: bool,
    /// The number of tokens that have a text; 0 if the texts are not known.
    pub n_tokens: usize,
    /// Returns the text of a token.
    pub bytes: &'a dyn Fn(u32) -> &'a [u8],
}

/// What a stage needs to run, besides the candidates.
pub struct Context<'a> {
    /// The text so far: at least the last [`Chain::looks_back`] tokens.
    pub history: &'a [u32],
    /// Scratch marks, which a stage has to clear before use.
    pub marks: &'a mut Marks,
    /// The sampler's random stream.
    pub random: &'a mut Random,
    /// The weight, relative to the most likely token, below which the next stage removes all tokens.
    pub floor: Option<f64>,
    /// The tokens that can be chosen and their probabilities, filled in by a stage that learns from the choice.
    pub last: &'a mut Vec<(u32, f64)>,
}

/// The effect of a stage on the most likely token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// None: it removes other tokens, or changes all in the same way.
    Cuts,
    /// It depends on the probabilities of the others.
    Looks,
    /// Another token may become the most likely one.
    Changes,
    /// It chooses the most likely token, so no later stage matters.
    Chooses,
}

/// One step between logits and the draw.
pub trait Apply {
    /// Applies the stage.
    ///
    /// # Errors
    /// If a logit is NaN or plus infinity, or nothing is left.
    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error>;

    /// Returns the effect of the stage on the most likely token.
    fn effect(&self) -> Effect;

    /// Returns how many of the last tokens the stage looks at.
    fn looks_back(&self) -> usize {
        0
    }

    /// Returns the weight, relative to the most likely token, below which the stage removes all tokens, however few are
    /// left.
    fn floor(&self) -> Option<f64> {
        None
    }

    /// Forgets what was chosen.
    fn begin(&mut self) {}

    /// Learns that a token of this probability was chosen from those in [`Context::last`].
    fn learn(&mut self, _p: f64) {}
}

macro_rules! define_stages {
    ($($kind:ident: $module:ident,)*) => {
        /// A stage of any sampler. It is dispatched once per stage, and statically within it.
        #[derive(Clone, Debug)]
        enum Stage {
            $($kind(samplers::$module::Stage),)*
        }

        impl Stage {
            /// Returns the stage of a sampler; `None` if it would change nothing.
            fn new(kind: SamplerKind, params: &Params, surroundings: &Surroundings<'_>) -> Option<Self> {
                match kind {
                    $(SamplerKind::$kind => {
                        samplers::$module::stage(&params.$module, surroundings).map(Self::$kind)
                    })*
                }
            }
        }

        impl Apply for Stage {
            fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
                match self {
                    $(Self::$kind(stage) => stage.apply(candidates, context),)*
                }
            }

            fn effect(&self) -> Effect {
                match self {
                    $(Self::$kind(stage) => stage.effect(),)*
                }
            }

            fn looks_back(&self) -> usize {
                match self {
                    $(Self::$kind(stage) => stage.looks_back(),)*
                }
            }

            fn floor(&self) -> Option<f64> {
                match self {
                    $(Self::$kind(stage) => stage.floor(),)*
                }
            }

            fn begin(&mut self) {
                match self {
                    $(Self::$kind(stage) => stage.begin(),)*
                }
            }

            fn learn(&mut self, p: f64) {
                match self {
                    $(Self::$kind(stage) => stage.learn(p),)*
                }
            }
        }
    };
}
for_each_sampler!(define_stages);

/// All stages, and the tokens that could have been chosen in the last draw.
#[derive(Clone, Debug)]
pub struct Chain {
    stages: Vec<Stage>,
    // Filled in if the last stage learns from the choice.
    pub(super) last: Vec<(u32, f64)>,
}

impl Chain {
    /// Creates the stages that `params` select, in the order in which they are applied. Stages that would change
    /// nothing are left out.
    ///
    /// # Errors
    /// If a parameter is outside its range.
    pub fn new<'a>(params: &Params, n_tokens: usize, bytes: &'a dyn Fn(u32) -> &'a [u8]) -> Result<Self, Error> {
        params.check()?;
        let mut surroundings = Surroundings { min_keep: params.min_keep as usize, is_alone: false, n_tokens, bytes };
        let stage = |kind: SamplerKind, surroundings: &Surroundings<'_>| Stage::new(kind, params, surroundings);
        let at = |is_there: fn(Place) -> bool| {
            SamplerKind::ALL.iter().copied().filter(move |kind| is_there(kind.entry().place))
        };

        let alone = at(|place| matches!(place, Place::Alone { .. })).find_map(|kind| {
            let Place::Alone { after } = kind.entry().place else { return None };
            stage(kind, &surroundings).map(|stage| (after, stage))
        });
        surroundings.is_alone = alone.is_some();
        let (order, last) = match alone {
            Some((after, stage)) => (after, Some(stage)),
            None => {
                (&params.samplers[..], at(|place| place == Place::Last).find_map(|kind| stage(kind, &surroundings)))
            }
        };
        let first = at(|place| place == Place::First);
        let is_ordered = |place| matches!(place, Place::InOrder | Place::OnRequest);
        let ordered = order.iter().copied().filter(|kind| is_ordered(kind.entry().place));
        let mut stages: Vec<Stage> =
            first.chain(ordered).filter_map(|kind| stage(kind, &surroundings)).chain(last).collect();

        leave_out_what_greedy_ignores(&mut stages);
        let mut new = Self { stages, last: Vec::new() };
        new.begin();
        Ok(new)
    }

    /// Returns whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.stages.last().is_some_and(|stage| stage.effect() == Effect::Chooses)
    }

    /// Returns how many of the last tokens the stages look at.
    pub fn looks_back(&self) -> usize {
        self.stages.iter().map(Stage::looks_back).max().unwrap_or(0)
    }

    /// Forgets what was chosen.
    pub fn begin(&mut self) {
        self.last.clear();
        self.stages.iter_mut().for_each(Stage::begin);
    }

    /// Learns from the choice. A token that could not have been chosen is ignored.
    pub fn accept(&mut self, token: u32) {
        let chosen = self.last.iter().find(|(id, _)| *id == token).map(|(_, p)| *p);
        self.last.clear();
        if let Some(p) = chosen {
            self.stages.iter_mut().for_each(|stage| stage.learn(p));
        }
    }

    /// Applies all stages.
    ///
    /// # Errors
    /// If a logit is NaN or plus infinity, or nothing is left.
    pub fn apply(
        &mut self,
        candidates: &mut Candidates<'_>,
        history: &[u32],
        marks: &mut Marks,
        random: &mut Random,
    ) -> Result<(), Error> {
        let Self { stages, last } = self;
        last.clear();
        let mut context = Context { history, marks, random, floor: None, last };
        for index in 0..stages.len() {
            // A stage does not have to search among tokens that the next one would remove.
            context.floor = stages.get(index + 1).and_then(Stage::floor);
            stages[index].apply(candidates, &mut context)?;
        }
        Ok(())
    }
}

/// If the most likely token is always taken, removes all stages that cannot change which one that is.
fn leave_out_what_greedy_ignores(stages: &mut Vec<Stage>) {
    let Some(end) = stages.iter().position(|stage| stage.effect() == Effect::Chooses) else { return };
    stages.truncate(end + 1);
    if stages.iter().any(|stage| stage.effect() == Effect::Looks) {
        return;
    }
    let last_change = stages.iter().rposition(|stage| stage.effect() == Effect::Changes);
    let mut index = 0;
    stages.retain(|stage| {
        index += 1;
        // Before a penalty, a cut does matter: the second most likely token may become the first.
        stage.effect() != Effect::Cuts || last_change.is_some_and(|last| index - 1 < last)
    });
}
