//! Which candidate is nearer to the reference, and which are worth their size.

use serde::Serialize;

use super::Estimate;

/// Which of two candidates is nearer to the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The first.
    A,
    /// The second.
    B,
    /// The difference could be noise.
    NotDistinguishable,
}

/// Returns which of two candidates is nearer to the reference, from the mean KLD of the first minus that of the second.
///
/// An infinite difference decides by its sign: one of the two rules out a token of the text, and the other does not.
pub fn verdict(kld_difference: &Estimate) -> Verdict {
    if !kld_difference.differs_from_zero() && !kld_difference.value.is_infinite() {
        Verdict::NotDistinguishable
    } else if kld_difference.value < 0.0 {
        Verdict::A
    } else {
        Verdict::B
    }
}

/// Returns for each candidate whether it is on the front: no other one is at most as large with a lower KLD, or smaller
/// with the same KLD.
///
/// Candidates that are equal in both stay. A candidate with a KLD of NaN does not.
pub fn front(sizes: &[u64], klds: &[f64]) -> Vec<bool> {
    let all = || sizes.iter().zip(klds);
    let beaten = |size: &u64, kld: &f64| all().any(|(s, k)| s <= size && k <= kld && (s < size || k < kld));
    all().map(|(size, kld)| !kld.is_nan() && !beaten(size, kld)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_an_interval_that_leaves_zero_out() {
        let of = |value, interval| verdict(&Estimate { value, interval });
        assert_eq!(of(-0.1, Some([-0.2, -0.01])), Verdict::A);
        assert_eq!(of(0.1, Some([0.01, 0.2])), Verdict::B);
        assert_eq!(of(0.1, Some([-0.01, 0.2])), Verdict::NotDistinguishable);
        assert_eq!(of(0.0, Some([0.0, 0.0])), Verdict::NotDistinguishable);
        assert_eq!(of(0.1, None), Verdict::NotDistinguishable);
        assert_eq!(of(f64::NAN, None), Verdict::NotDistinguishable);
        assert_eq!(of(f64::INFINITY, None), Verdict::B);
        assert_eq!(of(f64::NEG_INFINITY, None), Verdict::A);
    }

    #[test]
    fn the_front_has_those_that_no_other_beats() {
        let sizes = [10, 20, 30, 20, 10, 40, 5, 25];
        let klds = [0.5, 0.2, 0.2, 0.3, 0.5, 0.1, f64::NAN, f64::INFINITY];
        assert_eq!(front(&sizes, &klds), [true, true, false, false, true, true, false, false]);
        assert_eq!(front(&[], &[]), [false; 0]);
        assert_eq!(front(&[7], &[f64::INFINITY]), [true]);
    }
}
