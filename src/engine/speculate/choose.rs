//! Accepts a drafted token, or replaces it by drawing another one, so that the draft does not change the distribution.
//!
//! ```text
//! p   what the model would draw the next token from          q   what the draft drew x from
//!
//! x is accepted with probability min(1, p(x) / q(x)); otherwise a token is drawn from max(0, p - q), scaled to add up to 1
//! ```
//!
//! Whatever q is, the resulting token has the distribution p.
//!
//! Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding",
//! <https://arxiv.org/abs/2211.17192>; Chen et al., "Accelerating Large Language Model Decoding with Speculative
//! Sampling", <https://arxiv.org/abs/2302.01318>

/// Returns `drafted`, or draws another token.
///
/// `p` and `q` are tokens and their probabilities, each adding up to 1; `q` is sorted by token, and `drafted` was drawn
/// from it. `unit` returns random numbers in [0, 1), independent of that draw.
pub fn take_or_redraw(drafted: u32, p: &[(u32, f64)], q: &[(u32, f64)], mut unit: impl FnMut() -> f64) -> u32 {
    let in_p = p.iter().find(|(id, _)| *id == drafted).map_or(0.0, |(_, p)| *p);
    if unit() * probability(q, drafted) < in_p {
        return drafted;
    }
    let left = |(id, p): (u32, f64)| (p - probability(q, id)).max(0.0);
    let total: f64 = p.iter().copied().map(left).sum();
    // If p and q differ only by rounding, nothing is left, and p itself can be used.
    if total > 0.0 { draw(p.iter().map(|c| (c.0, left(*c))), total * unit()) } else { draw(p.iter().copied(), unit()) }
}

/// Returns the first token at which the running sum of the weights exceeds `share`.
pub(super) fn draw(weights: impl Iterator<Item = (u32, f64)>, share: f64) -> u32 {
    let mut left = share;
    let mut last = 0;
    for (id, weight) in weights.filter(|(_, weight)| *weight > 0.0) {
        left -= weight;
        last = id;
        if left < 0.0 {
            break;
        }
    }
    // Rounding may leave a remainder if the share is close to the sum of all weights.
    last
}

fn probability(sorted: &[(u32, f64)], token: u32) -> f64 {
    sorted.binary_search_by_key(&token, |(id, _)| *id).map_or(0.0, |i| sorted[i].1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::random::Random;

    /// A distribution over `n` tokens; some have none.
    fn distribution(n: u32) -> impl Strategy<Value = Vec<(u32, f64)>> {
        let weight = prop_oneof![2 => 0.0f64..1.0, 1 => Just(0.0), 1 => 0.0f64..0.01];
        prop::collection::vec(weight, n as usize).prop_filter_map("one token at least", |weights| {
            let total: f64 = weights.iter().sum();
            let all = (0u32..).zip(weights).filter(|(_, w)| *w > 0.0);
            (total > 0.0).then(|| all.map(|(id, w)| (id, w / total)).collect())
        })
    }

    /// The exact distribution of what comes out, by integrating over the random numbers on a fine grid.
    fn exact(p: &[(u32, f64)], q: &[(u32, f64)], n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n];
        for &(x, q_x) in q {
            let p_x = p.iter().find(|(id, _)| *id == x).map_or(0.0, |(_, p)| *p);
            let taken = (p_x / q_x).min(1.0);
            out[x as usize] += q_x * taken;
            const STEPS: usize = 4000;
            for step in 0..STEPS {
                // The first number is just too large to be taken; the second one runs over its range.
                let mut units = [0.999_999_999_999, (step as f64 + 0.5) / STEPS as f64].into_iter();
                if taken < 0.999_999_999 {
                    let token = take_or_redraw(x, p, q, || units.next().unwrap());
                    out[token as usize] += q_x * (1.0 - taken) / STEPS as f64;
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_comes_out_is_distributed_as_the_model_would_have_it(
            (p, q) in (1u32..9).prop_flat_map(|n| (distribution(n), distribution(n))),
            reversed in any::<bool>(),
        ) {
            let mut shuffled = p.clone();
            if reversed {
                shuffled.reverse();
            }
            let out = exact(&shuffled, &q, 9);
            for (token, got) in (0u32..).zip(out) {
                let wanted = p.iter().find(|(id, _)| *id == token).map_or(0.0, |(_, p)| *p);
                prop_assert!((got - wanted).abs() < 2e-3, "token {token}: {got} for {wanted}");
            }
        }

        #[test]
        fn a_token_that_the_model_rules_out_never_comes(
            (p, q) in (1u32..9).prop_flat_map(|n| (distribution(n), distribution(n))),
            a in 0.0f64..1.0, b in 0.0f64..1.0,
        ) {
            for &(x, _) in &q {
                let mut units = [a, b].into_iter();
                let token = take_or_redraw(x, &p, &q, || units.next().unwrap());
                prop_assert!(p.iter().any(|(id, _)| *id == token));
            }
        }
    }

    /// Pearson's statistic against the 99.99th percentile of chi-squared.
    fn check(counts: &[u32], wanted: &[f64]) {
        let n: f64 = counts.iter().map(|c| f64::from(*c)).sum();
        let cells: Vec<_> = counts.iter().zip(wanted).filter(|(_, w)| **w > 0.0).collect();
        let statistic: f64 = cells.iter().map(|(c, w)| (f64::from(**c) - n * **w).powi(2) / (n * **w)).sum();
        let df = (cells.len() - 1) as f64;
        let limit = df * (1.0 - 2.0 / (9.0 * df) + 3.719 * (2.0 / (9.0 * df)).sqrt()).powi(3);
        assert!(statistic < limit, "chi-squared {statistic:.1}, limit {limit:.1}");
    }

    /// A model over four tokens that looks back on one: the joint distribution of three tokens, two of them drafted by
    /// another model.
    #[test]
    fn a_drafted_text_is_distributed_as_one_that_was_not() {
        let row = |weights: [f64; 4]| -> Vec<(u32, f64)> {
            let total: f64 = weights.iter().sum();
            (0u32..).zip(weights).filter(|(_, w)| *w > 0.0).map(|(id, w)| (id, w / total)).collect()
        };
        let model = [[5., 1., 0., 2.], [1., 1., 1., 1.], [0., 0., 3., 1.], [9., 0.5, 0.5, 2.]].map(row);
        let draft = [[1., 1., 1., 1.], [0., 4., 1., 1.], [1., 0., 9., 0.], [1., 0.5, 0.5, 9.]].map(row);
        let mut wanted = vec![0.0; 64];
        let at = |row: &[(u32, f64)], id: usize| probability(row, id as u32);
        for (i, wanted) in wanted.iter_mut().enumerate() {
            let (a, b, c) = (i / 16, i / 4 % 4, i % 4);
            *wanted = at(&model[0], a) * at(&model[a], b) * at(&model[b], c);
        }
        let mut random = Random::new(5);
        let (mut counts, mut taken) = (vec![0u32; 64], 0u32);
        const TEXTS: u32 = 300_000;
        for _ in 0..TEXTS {
            let mut text = vec![0u32];
            while text.len() < 4 {
                let mut drafted = Vec::new();
                let mut last = *text.last().unwrap();
                for _ in 0..2 {
                    last = draw(draft[last as usize].iter().copied(), random.unit());
                    drafted.push(last);
                }
                for x in drafted {
                    let last = *text.last().unwrap() as usize;
                    let token = take_or_redraw(x, &model[last], &draft[last], || random.unit());
                    text.push(token);
                    if token != x {
                        break;
                    }
                    taken += 1;
                }
            }
            counts[(text[1] * 16 + text[2] * 4 + text[3]) as usize] += 1;
        }
        check(&counts, &wanted);
        assert!(taken > TEXTS / 2, "{taken} drafted tokens were taken");
    }
}
