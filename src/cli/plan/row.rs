//! One choice: a file, a context and a KV cache.

use super::candidate::Candidate;
use crate::llama::KvTypes;
use crate::placement::{Demand, Lacks, Placement, Room, place};

/// A context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub n_ctx: u32,
    pub kv_types: KvTypes,
}

/// Whether something fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Beside what runs now.
    Now(Placement),
    /// If nothing else that is large runs.
    Alone(Placement),
    /// Not at all.
    No(Lacks),
}

impl Fit {
    /// Places `demand` in what is there now, if that is known, or else in what there is at best.
    pub fn new(demand: &Demand, now: Option<&Room>, at_best: &Room) -> Self {
        match (now.map(|room| place(demand, room)), place(demand, at_best)) {
            (Some(Ok(placed)), _) => Self::Now(placed),
            (_, Ok(placed)) => Self::Alone(placed),
            (_, Err(lacks)) => Self::No(lacks),
        }
    }

    pub fn placement(&self) -> Option<&Placement> {
        match self {
            Self::Now(placed) | Self::Alone(placed) => Some(placed),
            Self::No(_) => None,
        }
    }
}

pub(super) struct Row {
    /// Which candidate.
    pub candidate: usize,
    pub spot: Spot,
    pub demand: Demand,
    pub fit: Fit,
    /// Tokens a second at which a prompt that half fills the context is read.
    pub reading: Option<f64>,
    /// Tokens a second that are written when the context is half full.
    pub writing: Option<f64>,
    /// The most tokens a second that the given bandwidth allows, as above.
    pub most: Option<f64>,
}

/// About as fast as most people read.
const COMFORTABLE: f64 = 5.0;

/// Fewer bits a weight cost more than they gain, while there is a choice.
const GOOD_BITS: f64 = 4.0;

/// Returns which row to take, if any fits: the finest weights that are written as fast as people read; if none is, the fastest
/// with at least four bits; of the first context that fits, with the first type of KV cache that fits.
pub(super) fn best(candidates: &[Candidate], rows: &[Row]) -> Option<usize> {
    let bits: Vec<f64> = candidates.iter().map(Candidate::bits).collect();
    best_of(&bits, rows)
}

fn best_of(bits: &[f64], rows: &[Row]) -> Option<usize> {
    let is_now = |row: &&Row| matches!(row.fit, Fit::Now(_));
    let is_any = rows.iter().any(|row| is_now(&row));
    let fitting = rows.iter().enumerate().filter(|(_, row)| match is_any {
        true => is_now(row),
        false => row.fit.placement().is_some(),
    });
    // Of each candidate, the first row that fits: contexts and KV types are in the order of preference.
    let mut firsts: Vec<(usize, &Row)> = Vec::new();
    for (i, row) in fitting {
        if firsts.iter().all(|(_, first)| first.candidate != row.candidate) {
            firsts.push((i, row));
        }
    }
    let speed = |row: &Row| row.writing.or(row.most);
    let finest = |rows: &[(usize, &Row)]| {
        let finer = |a: &&(usize, &Row), b: &&(usize, &Row)| bits[a.1.candidate].total_cmp(&bits[b.1.candidate]);
        rows.iter().max_by(finer).map(|(i, _)| *i)
    };
    let comfortable: Vec<_> =
        firsts.iter().copied().filter(|(_, row)| speed(row).is_none_or(|speed| speed >= COMFORTABLE)).collect();
    if let Some(i) = finest(&comfortable) {
        return Some(i);
    }
    let good: Vec<_> = firsts.iter().copied().filter(|(_, row)| bits[row.candidate] >= GOOD_BITS).collect();
    let fastest = |rows: &[(usize, &Row)]| {
        let faster =
            |a: &&(usize, &Row), b: &&(usize, &Row)| speed(a.1).unwrap_or(0.0).total_cmp(&speed(b.1).unwrap_or(0.0));
        rows.iter().max_by(faster).map(|(i, _)| *i)
    };
    fastest(&good).or_else(|| finest(&firsts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Parts;

    fn row(candidate: usize, fits: bool, writing: Option<f64>) -> Row {
        let parts = Parts { input: 1, layers: vec![1], output: 1, is_tied: false };
        let demand = Demand { parts, kv: vec![1], compute: 1, program: 1 };
        let room = Room::new(if fits { 100 } else { 0 }, &[]);
        let fit = Fit::new(&demand, Some(&room), &Room::default());
        let spot = Spot { n_ctx: 4096, kv_types: KvTypes::default() };
        Row { candidate, spot, demand, fit, reading: None, writing, most: None }
    }

    #[test]
    fn the_finest_that_is_fast_enough_is_taken() {
        let bits = [8.5, 5.7, 4.8, 3.9];
        let rows = |speeds: [Option<f64>; 4], fits: [bool; 4]| -> Vec<Row> {
            (0..4).map(|i| row(i, fits[i], speeds[i])).collect()
        };
        let all = [true; 4];
        assert_eq!(best_of(&bits, &rows([Some(9.0), Some(12.0), Some(14.0), Some(18.0)], all)), Some(0));
        assert_eq!(best_of(&bits, &rows([Some(3.0), Some(5.5), Some(6.0), Some(8.0)], all)), Some(1));
        // None is as fast as people read: four bits, and not fewer.
        assert_eq!(best_of(&bits, &rows([Some(1.0), Some(1.5), Some(2.0), Some(2.5)], all)), Some(2));
        assert_eq!(best_of(&bits, &rows([None; 4], all)), Some(0));
        assert_eq!(best_of(&bits, &rows([None; 4], [false, true, true, true])), Some(1));
        assert_eq!(best_of(&bits, &rows([Some(2.5); 4], [false, false, false, true])), Some(3));
        assert_eq!(best_of(&bits, &rows([None; 4], [false; 4])), None);
    }

    #[test]
    fn the_first_context_that_fits_is_taken_and_now_before_alone() {
        let fast = Some(10.0);
        let rows = [row(0, false, None), row(0, true, fast), row(0, true, fast)];
        assert_eq!(best_of(&[4.8], &rows), Some(1));
        let mut alone = row(1, false, fast);
        let room = Room::new(100, &[]);
        alone.fit = Fit::new(&alone.demand, Some(&Room::default()), &room);
        assert!(matches!(alone.fit, Fit::Alone(_)));
        let rows = [alone, row(0, true, fast)];
        assert_eq!(best_of(&[4.8, 6.6], &rows), Some(1));
        assert_eq!(best_of(&[4.8, 6.6], &rows[..1]), Some(0));
    }
}
