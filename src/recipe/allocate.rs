//! The cheapest choice of an option for each of many items, within a budget of bytes: the multiple-choice knapsack problem.
//!
//! ```text
//!  cost │ ●                      for each item, some options; those on the lower hull (─) are what a price
//!       │  ╲   ○                 of λ nats a byte can choose: the option with the least cost + λ · bytes
//!       │   ●──────●
//!       └──────────────── bytes
//! ```
//!
//! A price makes the items independent of each other, and gives a bound: no choice within the budget costs less than
//!
//! ```text
//!  L(λ) = Σ min over options (cost + λ · bytes) − λ · budget
//! ```
//!
//! At the best price, a greedy choice is within one item's step of it. The rest is exact: an option whose price is further above
//! the least one than what the greedy choice is above the bound is in no better choice. What is left is searched with dynamic
//! programming over lists of states, in which a state that takes no fewer bytes and costs no less than another is dropped, and
//! so is one whose prices add up to too much. If a list grows too long, the dearest states are dropped, and the bound that is
//! proved is that of the first one dropped.
//!
//! Sources: Sinha and Zoltners, *The Multiple-Choice Knapsack Problem*, Operations Research 27 (1979), for the hull and the
//! greedy choice; Pisinger, *A minimal algorithm for the multiple-choice knapsack problem*, European Journal of Operational
//! Research 83 (1995), for the rest.

/// An option of an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Bytes that it takes.
    pub bytes: u64,
    /// What it costs: at least 0. An option whose cost is not finite is never chosen.
    pub cost: f64,
}

/// An option for each item.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The index of each item's option.
    pub chosen: Vec<usize>,
    /// Bytes of all items together.
    pub bytes: u64,
    /// The cost of all items together.
    pub cost: f64,
    /// No choice within the budget costs less than this. Equal to the cost if this is proved to be the cheapest.
    pub bound: f64,
}

impl Allocation {
    /// Returns the part of the cost that a cheaper choice may save at most: 0 if there is none.
    pub fn gap(&self) -> f64 {
        if self.cost > self.bound { (self.cost - self.bound) / self.cost } else { 0.0 }
    }
}

/// A budget that no choice can keep, or that the largest one does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{budget} bytes were asked for, and what can be chosen takes {least} to {most}")]
pub struct OutOfRange {
    /// The budget.
    pub budget: u64,
    /// Bytes of the smallest choice.
    pub least: u64,
    /// Bytes of the cheapest one, if there were no budget.
    pub most: u64,
}

/// States of which a list may consist.
const MOST_STATES: usize = 1 << 13;

/// Returns the cheapest choice that takes at most `budget` bytes. Each item has a finite option.
///
/// # Errors
/// If the budget is less than the smallest choice takes, or more than the largest one of use.
pub fn allocate(items: &[Vec<Choice>], budget: u64) -> Result<Allocation, OutOfRange> {
    allocate_with(items, budget, MOST_STATES)
}

fn allocate_with(items: &[Vec<Choice>], budget: u64, most_states: usize) -> Result<Allocation, OutOfRange> {
    let frontiers: Vec<Vec<usize>> = items.iter().map(|options| frontier(options)).collect();
    let sum = |end: fn(&[usize]) -> Option<&usize>| {
        let bytes = items.iter().zip(&frontiers).filter_map(|(options, of)| end(of).map(|at| options[*at].bytes));
        bytes.fold(0u64, u64::saturating_add)
    };
    let (least, most) = (sum(<[usize]>::first), sum(<[usize]>::last));
    if budget < least || budget > most {
        return Err(OutOfRange { budget, least, most });
    }
    let (price, chosen) = greedy(items, &frontiers, budget);
    let best = search(items, &frontiers, budget, price, chosen, most_states);
    Ok(best)
}

/// Returns the options that no other one beats in both bytes and cost, from the smallest to the cheapest.
fn frontier(options: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..options.len()).filter(|at| options[*at].cost.is_finite()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&options[*a], &options[*b]);
        a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost))
    });
    let mut least = f64::INFINITY;
    order.retain(|at| {
        let better = options[*at].cost < least;
        least = least.min(options[*at].cost);
        better
    });
    order
}

/// Returns those of a frontier that some price chooses.
fn hull(options: &[Choice], frontier: &[usize]) -> Vec<usize> {
    let mut hull: Vec<usize> = Vec::new();
    for &at in frontier {
        while let [.., before, last] = hull[..] {
            if saving(options, before, last) > saving(options, before, at) {
                break;
            }
            hull.pop();
        }
        hull.push(at);
    }
    hull
}

/// What each byte saves, from one option to a larger one.
fn saving(options: &[Choice], from: usize, to: usize) -> f64 {
    let (from, to) = (&options[from], &options[to]);
    (from.cost - to.cost) / (to.bytes - from.bytes) as f64
}

/// Takes the steps along the hulls that save most for each byte. Returns the price of the first one that does not fit, and a
/// choice within the budget.
fn greedy(items: &[Vec<Choice>], frontiers: &[Vec<usize>], budget: u64) -> (f64, Vec<usize>) {
    let mut chosen: Vec<usize> = frontiers.iter().map(|frontier| frontier.first().copied().unwrap_or(0)).collect();
    let bytes_of = |item: usize, at: usize| items[item].get(at).map_or(0, |choice| choice.bytes);
    let mut left = budget - chosen.iter().enumerate().map(|(item, at)| bytes_of(item, *at)).sum::<u64>();
    let mut steps: Vec<(f64, usize, usize, usize)> = Vec::new();
    for (item, (options, frontier)) in items.iter().zip(frontiers).enumerate() {
        let hull = hull(options, frontier);
        steps.extend(hull.windows(2).map(|pair| (saving(options, pair[0], pair[1]), item, pair[0], pair[1])));
    }
    // Stable: the steps of an item stay in order.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut price = None;
    for (saving, item, from, to) in steps {
        let more = bytes_of(item, to) - bytes_of(item, from);
        if price.is_none() && more <= left {
            chosen[item] = to;
            left -= more;
        } else if price.is_none() {
            price = Some(saving);
        }
    }
    // What is left goes to the steps that save most, whether they are on a hull or not.
    loop {
        let larger = frontiers.iter().enumerate().flat_map(|(item, frontier)| {
            let at = chosen[item];
            let larger = frontier.iter().filter(move |to| bytes_of(item, **to) > bytes_of(item, at));
            larger.map(move |to| (item, *to))
        });
        let fitting = larger.filter(|(item, to)| bytes_of(*item, *to) - bytes_of(*item, chosen[*item]) <= left);
        let saved = |(item, to): &(usize, usize)| items[*item][chosen[*item]].cost - items[*item][*to].cost;
        let Some((item, to)) = fitting.max_by(|a, b| saved(a).total_cmp(&saved(b))) else { break };
        left -= bytes_of(item, to) - bytes_of(item, chosen[item]);
        chosen[item] = to;
    }
    (price.unwrap_or(0.0), chosen)
}

/// A choice for the items so far.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    cost: f64,
    /// How much more than the least price all its options have.
    above: f64,
    last: Step,
}

/// How a state was made.
#[derive(Clone, Copy)]
struct Step {
    /// The state that it was made from, in the list before.
    from: u32,
    /// The option of the last item.
    option: u32,
}

/// Searches for a choice that is cheaper than `chosen`, at a price that makes a good bound.
fn search(
    items: &[Vec<Choice>],
    frontiers: &[Vec<usize>],
    budget: u64,
    price: f64,
    chosen: Vec<usize>,
    most_states: usize,
) -> Allocation {
    let priced = |choice: &Choice| choice.cost + price * choice.bytes as f64;
    let total = |chosen: &[usize]| {
        let of = items.iter().zip(chosen).filter_map(|(options, at)| options.get(*at));
        of.fold((0u64, 0.0), |(bytes, cost), choice| (bytes + choice.bytes, cost + choice.cost))
    };
    let (bytes, cost) = total(&chosen);
    let least = |item: usize| frontiers[item].iter().map(|at| priced(&items[item][*at])).fold(f64::INFINITY, f64::min);
    let leasts: Vec<f64> =
        (0..items.len()).map(|item| if frontiers[item].is_empty() { 0.0 } else { least(item) }).collect();
    let relaxed = leasts.iter().sum::<f64>() - price * budget as f64;
    // Sums of numbers in another order differ by so much, and no more.
    let scale = leasts.iter().sum::<f64>().abs() + cost;
    let tiny = scale * 1e-13 * (items.len() + 1) as f64;
    let room = cost - relaxed + tiny;

    // Items with most to choose from come last: lists stay short for longer.
    let near = |item: usize, at: &usize| priced(&items[item][*at]) - leasts[item] <= room;
    let mut order: Vec<(usize, Vec<usize>)> = frontiers
        .iter()
        .enumerate()
        .map(|(item, frontier)| (item, frontier.iter().copied().filter(|at| near(item, at)).collect()))
        .filter(|(_, options): &(usize, Vec<usize>)| !options.is_empty())
        .collect();
    order.sort_by_key(|(_, options)| options.len());
    // The fewest bytes of all items from each place on.
    let mut fewest = vec![0u64; order.len() + 1];
    for (at, (item, options)) in order.iter().enumerate().rev() {
        let of_item = options.iter().map(|at| items[*item][*at].bytes).min().unwrap_or(0);
        fewest[at] = fewest[at + 1] + of_item;
    }

    // Of the lists before the last, what is needed to go back.
    let mut steps: Vec<Vec<Step>> = Vec::new();
    let mut list = vec![State { bytes: 0, cost: 0.0, above: 0.0, last: Step { from: 0, option: 0 } }];
    let mut dropped = f64::INFINITY;
    for (at, (item, options)) in order.iter().enumerate() {
        let mut next = Vec::with_capacity(list.len() * options.len());
        for (from, state) in list.iter().enumerate() {
            for &option in options {
                let choice = &items[*item][option];
                let bytes = state.bytes + choice.bytes;
                let above = state.above + (priced(choice) - leasts[*item]).max(0.0);
                if above <= room && bytes + fewest[at + 1] <= budget {
                    let last = Step { from: from as u32, option: option as u32 };
                    next.push(State { bytes, cost: state.cost + choice.cost, above, last });
                }
            }
        }
        next.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
        let mut least = f64::INFINITY;
        next.retain(|state| {
            let better = state.cost < least;
            least = least.min(state.cost);
            better
        });
        if next.len() > most_states {
            let mut above: Vec<f64> = next.iter().map(|state| state.above).collect();
            let (_, limit, _) = above.select_nth_unstable_by(most_states, f64::total_cmp);
            let limit = *limit;
            dropped = dropped.min(limit);
            next.retain(|state| state.above < limit);
        }
        steps.push(next.iter().map(|state| state.last).collect());
        list = next;
    }
    // Nothing is cheaper than what is found, or than what was dropped.
    let mut best = chosen;
    let found = (0..list.len()).min_by(|a, b| list[*a].cost.total_cmp(&list[*b].cost));
    if let Some(mut at) = found {
        let mut other = best.clone();
        for (steps, (item, _)) in steps.iter().zip(&order).rev() {
            other[*item] = steps[at].option as usize;
            at = steps[at].from as usize;
        }
        let (other_bytes, other_cost) = total(&other);
        if other_bytes <= budget && (other_cost, other_bytes) < (cost, bytes) {
            best = other;
        }
    }
    let (bytes, cost) = total(&best);
    let bound = if dropped.is_finite() { cost.min(relaxed + dropped).max(0.0) } else { cost };
    Allocation { chosen: best, bytes, cost, bound }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn brute(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        let with = |choice: &Choice| {
            let left = budget.checked_sub(choice.bytes).filter(|_| choice.cost.is_finite())?;
            Some(choice.cost + brute(rest, left)?)
        };
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    fn instances() -> impl Strategy<Value = Vec<Vec<Choice>>> {
        let bytes = prop_oneof![1u64..12, 1u64..1000];
        let cost = prop_oneof![(0u32..8).prop_map(f64::from), 0.0..1.0, Just(f64::INFINITY), (0.0f64..1e-9)];
        let option = (bytes, cost).prop_map(|(bytes, cost)| Choice { bytes, cost });
        let item = prop::collection::vec(option, 1..6)
            .prop_filter("one can be chosen", |item| item.iter().any(|choice| choice.cost.is_finite()));
        prop::collection::vec(item, 1..7)
    }

    /// Like a model: the same few shapes in many layers, each with its own sensitivity.
    fn like_a_model(layers: u64) -> Vec<Vec<Choice>> {
        let mut random = crate::base::random::Random::new(7);
        let bits = [84.0, 110.0, 136.0, 144.0, 176.0, 210.0, 272.0, 512.0];
        let mut items = Vec::new();
        for _ in 0..layers {
            for blocks in [200_704u64, 28_672, 28_672, 200_704, 573_440, 573_440, 573_440] {
                let sensitivity = (random.unit() * 3.0).exp() * blocks as f64 * 1e-12;
                let option = |bytes: &f64| Choice {
                    bytes: blocks * *bytes as u64,
                    cost: if *bytes > 500.0 {
                        0.0
                    } else {
                        sensitivity * (-bytes / 46.0).exp() * (1.0 + 0.2 * random.unit())
                    },
                };
                items.push(bits.iter().map(option).collect());
            }
        }
        items
    }

    proptest! {
        #[test]
        fn the_cheapest_choice_is_that_of_trying_all(items in instances(), part in 0.0f64..1.0, states in prop_oneof![Just(1usize), Just(4), Just(MOST_STATES)]) {
            let OutOfRange { least, most, .. } = allocate(&items, u64::MAX).unwrap_err();
            let budget = least + (part * (most - least) as f64) as u64;
            let found = allocate_with(&items, budget, states).unwrap();
            let wanted = brute(&items, budget).unwrap();
            let of = |at: usize| items[at][found.chosen[at]];
            prop_assert_eq!(found.bytes, (0..items.len()).map(|at| of(at).bytes).sum::<u64>());
            prop_assert!(found.bytes <= budget);
            prop_assert!(found.bound <= wanted + 1e-9 * (1.0 + wanted), "{} is not below {wanted}", found.bound);
            prop_assert!(found.cost >= wanted - 1e-9 * (1.0 + wanted));
            if states == MOST_STATES {
                prop_assert!((found.cost - wanted).abs() <= 1e-9 * (1.0 + wanted), "{} instead of {wanted}", found.cost);
                prop_assert_eq!(found.gap(), 0.0);
            }
        }
    }

    #[test]
    fn a_model_is_allocated_within_a_moment_and_next_to_its_bound() {
        let items = like_a_model(60);
        let OutOfRange { least, most, .. } = allocate(&items, 0).unwrap_err();
        let start = std::time::Instant::now();
        let mut before = f64::INFINITY;
        for part in [0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0] {
            let budget = least + (part * (most - least) as f64) as u64;
            let found = allocate(&items, budget).unwrap();
            assert!(found.bytes <= budget && found.cost <= before);
            assert!(found.gap() < 1e-4, "{part}: {}", found.gap());
            assert!(part > 0.4 || budget - found.bytes < budget / 1000, "{} of {budget}", found.bytes);
            before = found.cost;
        }
        // Eight of them, on a machine that is busy with other tests.
        assert!(start.elapsed().as_secs_f64() < 20.0, "{:?}", start.elapsed());
    }

    #[test]
    fn a_budget_that_cannot_be_kept_or_used_says_what_can() {
        let choice = |bytes, cost| Choice { bytes, cost };
        let items =
            [vec![choice(10, 5.0), choice(20, 1.0), choice(30, 2.0)], vec![choice(7, f64::INFINITY), choice(9, 3.0)]];
        let wanted = |budget| OutOfRange { budget, least: 19, most: 29 };
        assert_eq!(allocate(&items, 18), Err(wanted(18)));
        assert_eq!(allocate(&items, 30), Err(wanted(30)));
        let all = allocate(&items, 29).unwrap();
        assert_eq!((all.chosen.as_slice(), all.bytes, all.cost, all.gap()), ([1, 1].as_slice(), 29, 4.0, 0.0));
        assert_eq!(allocate(&items, 28).unwrap().chosen, [0, 1]);
        assert_eq!(allocate(&[], 0).unwrap().cost, 0.0);
    }
}
