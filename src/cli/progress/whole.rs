//! How much time is left of rounding for texts, whose parts differ in what they cost.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::evaluate::rounding::Doing;
use crate::recipe::Plan;

/// Parts of the work, which take unlike times for the same number of multiplications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Forward,
    Backward,
    Round,
}

/// Estimates the time that is left, from the multiplications that are left in each part and the time that its others took.
/// A part that has not begun is taken to be as fast as all parts together.
pub struct Whole {
    state: Mutex<State>,
}

struct State {
    /// Of each part all its multiplications, those that are done, and the seconds that they took.
    parts: [(f64, f64, f64); 3],
    /// Multiplications to round each tensor.
    tensors: HashMap<String, f64>,
    /// What is done since when; a tensor with its multiplications.
    now: Option<(Part, f64, Instant)>,
}

impl Whole {
    /// Returns an estimate for rounding the matrices of `plan`, for `n_tokens` tokens that are computed forward, and backward
    /// too if `backward`.
    pub fn new(plan: &Plan, n_tokens: usize, backward: bool) -> Self {
        let (mut forward, mut back, mut round) = (0.0, 0.0, 0.0);
        let mut tensors = HashMap::new();
        for tensor in plan.tensors.iter().filter(|tensor| tensor.dims.len() == 2) {
            let [columns, rows] = [tensor.dims[0] as f64, tensor.dims[1] as f64];
            let (product, moments) = (n_tokens as f64 * columns * rows, n_tokens as f64 * columns * columns / 2.0);
            if tensor.layer.is_some() {
                forward += product + if backward { 0.0 } else { moments };
                // Forward again, backward, and the second moments of inputs and outputs.
                back += 2.0 * product + moments + n_tokens as f64 * rows * rows / 2.0;
            }
            if tensor.ty.block_len() > 1 {
                // Inverting the second moments, compensating, and refitting.
                let work = columns * columns * (columns + rows);
                round += work;
                tensors.insert(tensor.name.clone(), work);
            }
        }
        let back = if backward { back } else { 0.0 };
        let parts = [(forward, 0.0, 0.0), (back, 0.0, 0.0), (round, 0.0, 0.0)];
        Self { state: Mutex::new(State { parts, tensors, now: None }) }
    }

    /// Returns words for what is done now and for the time that is left, as far as it can be told.
    pub fn note(&self, doing: &Doing<'_>) -> String {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.note(doing, Instant::now());
        match state.left() {
            Some(left) => format!("{doing}, {} left", words(left)),
            None => doing.to_string(),
        }
    }
}

impl State {
    fn note(&mut self, doing: &Doing<'_>, at: Instant) {
        if let Some((part, work, since)) = self.now {
            let (all, done, seconds) = &mut self.parts[part as usize];
            *seconds += at.duration_since(since).as_secs_f64();
            *done = (*done + work).min(*all);
        }
        let share = |step: usize, of: usize| step as f64 / of.max(1) as f64;
        let (part, work) = match doing {
            Doing::Forward { step, of } => {
                self.parts[Part::Forward as usize].1 = self.parts[Part::Forward as usize].0 * share(*step, *of);
                (Part::Forward, 0.0)
            }
            Doing::Backward { step, of } => {
                // All is forward before.
                let forward = &mut self.parts[Part::Forward as usize];
                forward.1 = forward.0;
                let back = &mut self.parts[Part::Backward as usize];
                back.1 = back.0 * share(*step, of + 1);
                (Part::Backward, back.0 / (of + 1) as f64)
            }
            // Before rounding, for another plan.
            Doing::Measuring { .. } => (Part::Backward, 0.0),
            Doing::Rounding { tensor } => (Part::Round, self.tensors.get(*tensor).copied().unwrap_or(0.0)),
        };
        self.now = Some((part, work, at));
    }

    /// Returns the time that is left; `None` if nothing is done yet.
    fn left(&self) -> Option<Duration> {
        let sum = |of: fn(&(f64, f64, f64)) -> f64| self.parts.iter().map(of).sum::<f64>();
        let (done, seconds) = (sum(|part| part.1), sum(|part| part.2));
        if done <= 0.0 || seconds <= 0.0 {
            return None;
        }
        let of_part = |(all, done_of_it, seconds_of_it): &(f64, f64, f64)| {
            let pace = if *done_of_it > 0.0 { seconds_of_it / done_of_it } else { seconds / done };
            (all - done_of_it).max(0.0) * pace
        };
        Duration::try_from_secs_f64(self.parts.iter().map(of_part).sum()).ok()
    }
}

/// A time as people say it.
fn words(left: Duration) -> String {
    let minutes = left.as_secs_f64() / 60.0;
    match minutes {
        m if m < 1.0 => "less than a minute".to_string(),
        m if m < 90.0 => format!("about {m:.0} min"),
        m => format!("about {:.0} h", m / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_own_pace() {
        let tensors = [("a".to_string(), 30.0), ("b".to_string(), 10.0)].into();
        let mut state = State { parts: [(100.0, 0.0, 0.0), (300.0, 0.0, 0.0), (40.0, 0.0, 0.0)], tensors, now: None };
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let left = |state: &State| state.left().map(|left| left.as_secs_f64().round());
        state.note(&Doing::Forward { step: 0, of: 2 }, at(0));
        assert_eq!(left(&state), None);
        state.note(&Doing::Forward { step: 1, of: 2 }, at(5));
        // 5 seconds for 50; 390 are left.
        assert_eq!(left(&state), Some(39.0));
        state.note(&Doing::Backward { step: 0, of: 2 }, at(10));
        state.note(&Doing::Backward { step: 1, of: 2 }, at(30));
        // Backward 20 seconds for 100; 200 are left, and 40 at the pace of 30 seconds for 200.
        assert_eq!(left(&state), Some(46.0));
        state.note(&Doing::Rounding { tensor: "a" }, at(50));
        state.note(&Doing::Backward { step: 2, of: 2 }, at(65));
        // Half of a second for each of a tensor; 10 of these are left, and a third of backward at 40 seconds for 200.
        assert_eq!(left(&state), Some(25.0));
        state.note(&Doing::Rounding { tensor: "b" }, at(85));
        state.note(&Doing::Rounding { tensor: "c" }, at(90));
        assert!(state.left().unwrap() < Duration::from_secs(1));
    }

    #[test]
    fn times_are_rounded_as_people_say_them() {
        let of = |seconds| words(Duration::from_secs(seconds));
        assert_eq!(
            (of(40), of(1500), of(9000)),
            ("less than a minute".into(), "about 25 min".into(), "about 2 h".into())
        );
    }
}
