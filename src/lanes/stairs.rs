//! Step functions of 16 values, each way of computing them with the tables that it needs.
//!
//! ```text
//!             values[2] ┌──────
//!   values[1] ┌─────────┘       at a step the upper value holds
//!  ───────────┘
//!  values[0]  steps[0]  steps[1]
//! ```
//!
//! With a search among the steps a lookup costs some thirty operations. Where a CPU can look up a number for each lane in
//! a table, *buckets* need fewer: the line is cut into pieces of equal width so narrow that few steps fall into one, and
//! only those are compared with.

/// A step function of arguments between -[`Self::BOUND`] and [`Self::BOUND`].
pub struct Stairs {
    /// Rising.
    pub steps: [f32; 15],
    /// The value below all steps, between the first and the second, and so on.
    pub values: [f32; 16],
    /// For tables of 32 numbers.
    pub narrow: Buckets<32, 1>,
    /// For tables of 8 numbers.
    pub wide: Buckets<8, 3>,
}

impl Stairs {
    /// The arguments lie below this magnitude.
    pub const BOUND: f32 = 140.0;

    /// The function with these steps and values.
    ///
    /// # Panics
    /// If the steps do not rise, lie beyond the bound, or are so close together that a bucket has too many.
    pub const fn new(steps: [f32; 15], values: [f32; 16]) -> Self {
        let mut i = 0;
        while i < 15 {
            assert!(-Self::BOUND < steps[i] && steps[i] < Self::BOUND, "a step lies beyond the bound");
            assert!(i == 0 || steps[i - 1] < steps[i], "the steps do not rise");
            i += 1;
        }
        Self { steps, values, narrow: Buckets::new(8, &steps, &values), wide: Buckets::new(32, &steps, &values) }
    }
}

/// The steps in each of `N` buckets, at most `K`.
///
/// Bucket number b holds the arguments that are nearest to b times the width; adding [`Self::round`] puts that number
/// where the lowest bits of the float are. Tables are indexed by b modulo `N`, so that two buckets, one on either side of
/// zero, may share an entry: then zero is among its steps.
pub struct Buckets<const N: usize, const K: usize> {
    /// Added to an argument, this puts the number of the argument's bucket into the lowest bits of the sum.
    pub round: f32,
    /// The value at the lower end of the bucket.
    pub first: [f32; N],
    /// Steps, rising, and from each on the value. Infinity where there are fewer.
    pub steps: [([f32; N], [f32; N]); K],
}

impl<const N: usize, const K: usize> Buckets<N, K> {
    const fn new(width: i32, steps: &[f32; 15], values: &[f32; 16]) -> Self {
        // The last bit of 1.5 · 2^23 is worth one: times the width it is worth the width.
        let round = 12_582_912.0 * width as f32;
        let mut buckets = Self { round, first: [0.0; N], steps: [([f32::INFINITY; N], [0.0; N]); K] };
        let mut found = [0; N];
        let mut filled = [false; N];
        let last = (Stairs::BOUND as i32 + width / 2 - 1) / width;
        let mut bucket = -last;
        while bucket <= last {
            let entry = bucket.rem_euclid(N as i32) as usize;
            let (lower, upper) = ((bucket * width - width / 2) as f32, (bucket * width + width / 2) as f32);
            let mut at = 0;
            while at < 15 && steps[at] < lower {
                at += 1;
            }
            if filled[entry] {
                assert!(bucket > 0 && bucket - (N as i32) < 0, "buckets share an entry across zero only");
                buckets.add(entry, &mut found, 0.0, values[at]);
            } else {
                filled[entry] = true;
                buckets.first[entry] = values[at];
            }
            // Of a step on the border both buckets know, so that it does not matter which one its argument is in.
            while at < 15 && steps[at] <= upper {
                buckets.add(entry, &mut found, steps[at], values[at + 1]);
                at += 1;
            }
            bucket += 1;
        }
        buckets
    }

    const fn add(&mut self, entry: usize, found: &mut [usize; N], step: f32, value: f32) {
        assert!(found[entry] < K, "a bucket has too many steps");
        self.steps[found[entry]].0[entry] = step;
        self.steps[found[entry]].1[entry] = value;
        found[entry] += 1;
    }
}
