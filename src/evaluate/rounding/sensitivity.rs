//! What each tensor costs in each type: nats per token that the predictions of a model move away.
//!
//! ```text
//!  texts ─► walk, forward and backward ─► H and G of each matrix ─┐
//!                                         weights ─► rows in type ┴► Σ G[i] H[k] e[i][k]² / 2     e = w − ŵ
//! ```
//!
//! A change Δ of what leaves a matrix costs (gᵀ Δ)² / 2 nats, to second order, where g is the gradient of −ln p of a token that
//! is drawn from the model's own prediction. With Δ = E x, and gradients taken to be independent of inputs, the mean over tokens
//! is
//!
//! ```text
//!  cost = mean ‖g‖² / 2 · tr(G E H Eᵀ)          G = E[g gᵀ] / E[‖g‖²],  H = E[‖g‖² x xᵀ] / E[‖g‖²]
//! ```
//!
//! The errors of weights that are rounded to nearest are all but uncorrelated, so what remains of the trace is its diagonal,
//! `Σ G[i][i] H[k][k] e[i][k]²`. All of it takes a pass over the weights for each type. The whole trace takes R K (R + K)
//! operations for each type, a thousand times as much for the matrices of Yi-34B, and a sample of the gradients has a variance
//! that the diagonal does not have.
//!
//! Rounding that compensates lets the weights that follow take over what an error does to them. What is left of H are the pivots p
//! of its triangular factor ([`SecondMoments::pivots`]): the part of each input that no other one tells. So the cost of a matrix
//! that is compensated is `Σ G[i][i] p[k] e[i][k]²`, and where rows take over errors of one another, G has pivots, too.
//!
//! Memory: that of a walk, a layer at a time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::known::{Sums, damped};
use super::walk::{EMBEDDING, OUTPUT, Walk};
use super::weights::SourceWeights;
use super::{Begun, DEFAULT_TOKENS, Doing, Error, Method, begin};
use crate::calibration::{Importance, Moments, Text};
use crate::engine::SessionOptions;
use crate::gguf::{TensorInfo, TensorType};
use crate::pass::{Assembly, Source};
use crate::quant;
use crate::quant::rounding::SecondMoments;
use crate::transformer::Model;

/// What to measure for.
#[derive(Clone, Debug)]
pub struct SensitivityOptions {
    /// How the tensors will be rounded; `None` for rounding to nearest.
    pub method: Option<Method>,
    /// The texts, in UTF-8.
    pub texts: Vec<Text>,
    /// The most tokens to read of all texts together. Each text gives as many, from all over it.
    pub most_tokens: u64,
    /// Threads, and the flag that interrupts the work.
    pub session: SessionOptions,
}

impl SensitivityOptions {
    /// Returns the default options with these texts.
    pub fn new(method: Option<Method>, texts: Vec<impl Into<Text>>) -> Self {
        let texts = texts.into_iter().map(Into::into).collect();
        Self { method, texts, most_tokens: DEFAULT_TOKENS, session: SessionOptions::default() }
    }
}

/// What a tensor costs in some types.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Its name.
    pub tensor: String,
    /// Types, each with nats per token. Infinite where the type cannot hold the weights.
    pub types: Vec<(TensorType, f64)>,
}

/// Measures what the matrices of the model in `source` cost in the types that `candidates` returns for each. Nothing is measured
/// of tensors that a walk does not learn about. `importance` is that of the conversion; it counts where rounding is to nearest.
/// Temporary files are in `folder`.
///
/// The costs do not depend on the CPU or the number of threads.
///
/// # Errors
/// If a text cannot be used, the architecture is not one whose layers can be computed, `folder` cannot be written to, or
/// it was cancelled.
pub fn measure(
    source: &Source,
    folder: &Path,
    options: &SensitivityOptions,
    importance: Option<&Importance>,
    candidates: &(dyn Fn(&TensorInfo) -> Vec<TensorType> + Sync),
    tell: &(dyn Fn(Doing<'_>) + Sync),
) -> Result<Vec<Costs>, Error> {
    let Begun { route, window, texts, .. } = begin(source, folder, Method::Full, &options.texts, options.most_tokens)?;
    let tokens: Vec<u32> = texts.into_iter().flat_map(|text| text.tokens).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.session.n_threads() as usize).build()?;
    let cancel = options.session.cancel.clone();
    let mut walk = Walk::new(route, tokens, window as usize, folder.to_path_buf(), cancel.clone()).for_second_halves();
    let weights = SourceWeights::new(source);
    let model = Model::new(&source.metadata, &weights)?;
    pool.install(|| {
        let mut found = Vec::new();
        for step in 0..route.n_steps() {
            let mut sums = walk.sums(&model, step, &|doing| tell(doing))?;
            for (index, tensor) in source.tensors.iter().enumerate() {
                let Some(place) = route.place(&tensor.name).filter(|place| place.step == step) else { continue };
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                tell(Doing::Measuring { tensor: &tensor.name });
                let types = candidates(tensor);
                let assembly = source.assembly(index);
                let given = importance.and_then(|importance| importance.of(&tensor.name));
                let sums = sums.remove(&place.name);
                let parts = parts(&tensor.name, route.tied, sums, &walk, options.method, given)?;
                let mut costs = vec![0.0; types.len()];
                for part in &parts {
                    part.add(&assembly, &types, &mut costs)?;
                }
                found.push(Costs { tensor: tensor.name.clone(), types: types.into_iter().zip(costs).collect() });
            }
        }
        Ok(found)
    })
}

/// A use of a matrix: what an error of each weight costs.
struct Use {
    /// What the sum over weights is multiplied by.
    factor: f64,
    /// Of each row; rows at 0 are not used.
    rows: Vec<f64>,
    /// Of each column.
    columns: Vec<f32>,
    /// With which the rows are rounded.
    importance: Option<Arc<Vec<f32>>>,
}

/// Returns the uses of a tensor: the embedding of a model without an output matrix has two.
fn parts(
    tensor: &str,
    tied: bool,
    sums: Option<Sums>,
    walk: &Walk,
    method: Option<Method>,
    given: Option<&[f32]>,
) -> Result<Vec<Use>, Error> {
    let (ends, tokens, n_counting) = (walk.ends(), walk.tokens(), walk.n_counting().max(1) as f64);
    let given = given.map(|given| Arc::new(given.to_vec()));
    // What a column costs, and the importance with which it is rounded.
    let columns = |moments: &Moments, compensates: bool| -> Result<_, Error> {
        if !compensates {
            return Ok((moments.diagonal(), given.clone()));
        }
        let prepared = SecondMoments::new(moments.estimate(), moments.columns())?;
        Ok((prepared.pivots().to_vec(), Some(Arc::new(prepared.importance().to_vec()))))
    };
    let mut parts = Vec::new();
    let is_output = tensor == OUTPUT || (tied && tensor == EMBEDDING);
    if let Some(moments) = ends.output.as_ref().filter(|_| is_output) {
        let (columns, importance) = columns(moments, method.is_some())?;
        let weight = moments.weight().max(f64::MIN_POSITIVE);
        let rows = ends.output_rows.iter().map(|square| square / weight).collect();
        parts.push(Use { factor: weight / n_counting / 2.0, rows, columns, importance });
    }
    if let Some(moments) = ends.embedding.as_ref().filter(|_| tensor == EMBEDDING) {
        // Without gradients, an embedding that is the output matrix, too, is rounded for that alone.
        let compensates = method.is_some_and(|method| method == Method::Full || !tied);
        let (columns, importance) = columns(moments, compensates)?;
        let mut rows = vec![0.0; ends.output_rows.len()];
        tokens
            .iter()
            .filter_map(|token| usize::try_from(*token).ok())
            .for_each(|token| rows[token] += 1.0 / moments.weight().max(1.0));
        let factor = moments.weight() / n_counting / 2.0;
        parts.push(Use { factor, rows, columns, importance });
    }
    if let Some(Sums { inputs, outputs }) = sums.filter(|sums| !sums.outputs.is_empty()) {
        let (columns, importance) = columns(&inputs, method.is_some())?;
        let mut rows = Vec::new();
        for outputs in outputs {
            match method {
                Some(Method::Full) => {
                    let prepared = SecondMoments::new(damped(&outputs), outputs.columns())?;
                    rows.extend(prepared.pivots().iter().copied().map(f64::from));
                }
                _ => rows.extend(outputs.diagonal().into_iter().map(f64::from)),
            }
        }
        parts.push(Use { factor: inputs.weight() / n_counting / 2.0, rows, columns, importance });
    }
    Ok(parts)
}

/// Weights that a thread rounds at a time.
const WEIGHTS_AT_ONCE: usize = 1 << 16;

impl Use {
    /// Adds what the matrix costs in each of the types. Works on the threads of the current rayon pool.
    fn add(&self, assembly: &Assembly<'_>, types: &[TensorType], costs: &mut [f64]) -> Result<(), Error> {
        let columns = assembly.row_len;
        if columns != self.columns.len() || assembly.n_rows != self.rows.len() {
            return Ok(());
        }
        let n_rows = (WEIGHTS_AT_ONCE / columns).max(1);
        let starts: Vec<usize> = (0..assembly.n_rows).step_by(n_rows).collect();
        let of_rows = |start: usize| self.of_rows(assembly, start..assembly.n_rows.min(start + n_rows), types);
        let found = starts.into_par_iter().map(of_rows).collect::<Result<Vec<_>, Error>>()?;
        // One after the other, so that the sum does not depend on the threads.
        for found in found {
            costs.iter_mut().zip(found).for_each(|(cost, found)| *cost += self.factor * found);
        }
        Ok(())
    }

    fn of_rows(
        &self,
        assembly: &Assembly<'_>,
        rows: std::ops::Range<usize>,
        types: &[TensorType],
    ) -> Result<Vec<f64>, Error> {
        let columns = self.columns.len();
        let used: Vec<usize> = rows.clone().filter(|row| self.rows[*row] > 0.0).collect();
        if used.is_empty() {
            return Ok(vec![0.0; types.len()]);
        }
        let mut read = Vec::new();
        assembly.read(rows.clone(), &mut read)?;
        let row = |row: &usize| &read[(row - rows.start) * columns..][..columns];
        let weights: Vec<f32> = used.iter().flat_map(|at| row(at).iter().copied()).collect();
        let (mut bytes, mut rounded) = (Vec::new(), vec![0.0; weights.len()]);
        let importance = self.importance.as_ref().map(|importance| importance.as_slice());
        let mut cost = |ty: TensorType| {
            let Some(format) = quant::format(ty).filter(|_| ty.row_bytes(columns as u64).is_some()) else {
                return f64::INFINITY;
            };
            // The conversion says what is wrong with weights that are no numbers, or takes them if it may.
            let limit = format.limit(importance.is_some());
            if weights.iter().any(|weight| weight.is_finite() && weight.abs() >= limit) {
                return f64::INFINITY;
            }
            bytes.resize(used.len() * format.row_bytes(columns), 0);
            format.quantize_rows(&weights, columns, importance, &mut bytes);
            format.dequantize(&bytes, &mut rounded);
            let of_row = |(weights, rounded): (&[f32], &[f32])| -> f64 {
                let errors =
                    weights.iter().zip(rounded).map(|(w, r)| if w.is_finite() { f64::from(w - r) } else { 0.0 });
                errors.zip(&self.columns).map(|(error, column)| error * error * f64::from(*column)).sum()
            };
            let each = weights.chunks_exact(columns).zip(rounded.chunks_exact(columns));
            each.map(of_row).zip(&used).map(|(sum, row)| sum * self.rows[*row]).sum()
        };
        Ok(types.iter().map(|ty| cost(*ty)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::known::Known;
    use super::super::walk::Route;
    use super::*;
    use crate::arch::ARCHITECTURES;
    use crate::quant::rounding::{OutputMoments, Settings};

    fn yi_nano() -> Source {
        Source::open(Path::new("tests/data/yi-nano"), ARCHITECTURES, false, None).unwrap()
    }

    fn options(method: Option<Method>, threads: u32) -> SensitivityOptions {
        let session = SessionOptions { threads: Some(threads), ..SessionOptions::default() };
        let texts = vec![std::path::PathBuf::from("tests/data/english.md")];
        SensitivityOptions { most_tokens: 2048, session, ..SensitivityOptions::new(method, texts) }
    }

    const TYPES: [TensorType; 4] = [TensorType::Q2_K, TensorType::Q4_K, TensorType::Q6_K, TensorType::BF16];

    #[test]
    fn more_bits_cost_less_and_nothing_depends_on_the_threads() {
        let source = yi_nano();
        let folder = std::env::temp_dir();
        let costs = |method, threads| {
            let options = options(method, threads);
            measure(&source, &folder, &options, None, &|_| TYPES.to_vec(), &|_| ()).unwrap()
        };
        let nearest = costs(None, 1);
        assert_eq!(nearest, costs(None, 3));
        let matrices = source.tensors.iter().filter(|tensor| tensor.dims.len() == 2);
        assert_eq!(nearest.len(), matrices.count());
        let full = costs(Some(Method::Full), 2);
        let compensated = costs(Some(Method::Compensated), 2);
        let sum = |costs: &[Costs]| costs.iter().map(|costs| costs.types[1].1).sum::<f64>();
        assert!(sum(&full) < sum(&compensated) && sum(&compensated) < sum(&nearest));
        for ((nearest, compensated), full) in nearest.iter().zip(&compensated).zip(&full) {
            let name = &nearest.tensor;
            let of = |costs: &Costs| costs.types.iter().map(|(_, cost)| *cost).collect::<Vec<f64>>();
            let [of_nearest, of_compensated, of_full] = [nearest, compensated, full].map(of);
            // Each bit takes away three quarters of what an error costs.
            for pair in of_nearest[..3].windows(2) {
                assert!(pair[0] > 6.0 * pair[1] && pair[0] < 60.0 * pair[1], "{name}: {of_nearest:?}");
            }
            assert_eq!(of_nearest[3], 0.0, "{name}: the weights are BF16");
            assert!(of_full[1] < 0.8 * of_nearest[1], "{name}");
            let is_alone = name == EMBEDDING || name == OUTPUT;
            // The damping of outputs adds a tenth where rows have little to take over.
            assert!(is_alone || of_full[1] < 1.3 * of_compensated[1], "{name}");
        }
    }

    /// What is known of the matrices of a model, and the weights of one.
    fn sums(source: &Source, name: &str) -> (Sums, Vec<f32>, f64) {
        let n_layers = 4;
        let route = Route { method: Method::Full, n_layers, tied: false };
        let tokens: Vec<u32> = (0..1024u32).map(|i| 9 + i * i * 977 % 6000).collect();
        let walk = Walk::new(route, tokens, 128, std::env::temp_dir(), Arc::default());
        let mut walk = walk.for_second_halves();
        let weights = SourceWeights::new(source);
        let model = Model::new(&source.metadata, &weights).unwrap();
        let place = route.place(name).unwrap();
        let sums = walk.sums(&model, place.step, &|_| ()).unwrap().remove(name).unwrap();
        let index = source.tensors.iter().position(|tensor| tensor.name == name).unwrap();
        let assembly = source.assembly(index);
        let mut values = Vec::new();
        assembly.read(0..assembly.n_rows, &mut values).unwrap();
        values.truncate(assembly.n_rows * assembly.row_len);
        assert_eq!(walk.n_counting(), 512);
        (sums, values, 512.0)
    }

    /// The whole trace, in double precision, and what rounding that compensates leaves.
    #[test]
    fn a_cost_is_the_trace_of_the_errors() {
        let source = yi_nano();
        for (name, ty) in [
            ("blk.1.attn_q.weight", TensorType::Q4_K),
            ("blk.3.ffn_down.weight", TensorType::Q2_K),
            ("blk.2.ffn_gate.weight", TensorType::IQ4_XS),
            ("blk.0.attn_output.weight", TensorType::Q4_0),
        ] {
            let (sums, weights, n_counting) = sums(&source, name);
            let (inputs, outputs) = (sums.inputs.clone(), sums.outputs[0].clone());
            let (columns, rows) = (inputs.columns(), outputs.columns());
            let format = quant::format(ty).unwrap();
            let prepared = SecondMoments::new(inputs.means(), columns).unwrap();
            let mut bytes = vec![0; rows * format.row_bytes(columns)];
            format.quantize_rows(&weights, columns, Some(prepared.importance()), &mut bytes);
            let moments = OutputMoments::new(outputs.means(), rows).unwrap();
            let trace = format.objective_two_sided(&weights, &prepared, &moments, &bytes);
            let wanted = trace * inputs.weight() / n_counting / 2.0;

            let index = source.tensors.iter().position(|tensor| tensor.name == name).unwrap();
            let assembly = source.assembly(index);
            let cost = |columns: Vec<f32>| {
                let importance = Some(Arc::new(prepared.importance().to_vec()));
                let rows = outputs.diagonal().into_iter().map(f64::from).collect();
                let of = Use { factor: inputs.weight() / n_counting / 2.0, rows, columns, importance };
                let mut costs = [0.0];
                of.add(&assembly, &[ty], &mut costs).unwrap();
                costs[0]
            };
            let found = cost(inputs.diagonal());
            println!("{name} {ty}: {:.3} of the trace", found / wanted);
            assert!(found > 0.75 * wanted && found < 1.3 * wanted, "{name}: {found} for {wanted}");

            // Compensated, with the same moments.
            let prepared = SecondMoments::new(inputs.estimate(), columns).unwrap();
            let settings = Settings::default();
            let outcome = format.round_for(&weights, &prepared, settings, &mut bytes).unwrap();
            let left = outcome.compensated.objective / outcome.nearest.unwrap().objective;
            let foretold = cost(prepared.pivots().to_vec()) / cost(inputs.diagonal());
            println!("{name} {ty}: {left:.3} is left, {foretold:.3} foretold");
            assert!(foretold > 0.6 * left && foretold < 1.5 * left, "{name}: {left} is left, {foretold} foretold");
        }
        assert!(Known::default().take_place(1).is_empty());
    }
}
