//! Which type each tensor of a model gets, where the file may take so many bytes: the choice after which its predictions are
//! nearest to the original's.
//!
//! ```text
//!  texts ─► sensitivity: nats per token of each tensor in each type ─┐
//!  target ─► bytes ──────────────────────────────────────────────────┴► recipe::allocate ─► recipe ─► conversion
//! ```
//!
//! What tensors cost is added up: errors of different tensors are taken to be uncorrelated. The choice becomes a recipe, whose
//! text can be kept, so that nothing has to be measured again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::arch::Role;
use crate::gguf::{DEFAULT_ALIGNMENT, Metadata, TensorInfo, TensorType};
use crate::llama;
use crate::placement::{ContextSize, Shape};
use crate::quant::{FORMATS, ImportanceUse};
use crate::recipe::allocate::{self, Choice, OutOfRange};
use crate::recipe::{self, Override, Plan, PlannedTensor};

pub use super::rounding::sensitivity::{Costs, SensitivityOptions, measure};

/// What limits the size of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Bytes of the file.
    FileBytes(u64),
    /// Bits per weight, over all tensors.
    BitsPerWeight(f64),
    /// Bytes of memory that the model runs in, with a context and beside the system.
    Memory(u64),
}

/// Memory that is left to the system and other programs: a sixteenth of all, and at least 1 GiB.
pub fn reserved_bytes(memory: u64) -> u64 {
    (memory / 16).max(1 << 30)
}

impl Target {
    /// Returns the most bytes that the files may take. `others` are the bytes of them that do not belong to tensors, and
    /// `n_weights` the number of weights of all tensors. With [`Target::Memory`], `metadata` describes the model and `context`
    /// is the context that is to fit, too. 0 if nothing is left for the weights.
    pub fn file_bytes(&self, others: u64, n_weights: u64, metadata: &Metadata, context: &ContextSize) -> u64 {
        match *self {
            Self::FileBytes(bytes) => bytes,
            Self::BitsPerWeight(bits) => others.saturating_add((bits * n_weights as f64 / 8.0) as u64),
            Self::Memory(bytes) => {
                let needs = Shape::new(metadata, 0).estimate(context).total();
                bytes.saturating_sub(needs).saturating_sub(reserved_bytes(bytes))
            }
        }
    }
}

/// How long a type takes while a token is written, for as many bytes, in units of the fastest one: what a choice goes by that
/// prefers speed. Types that the CPU has to do much for, or has no vector instructions for, take longer than reading them from
/// memory does.
#[derive(Clone, Debug, PartialEq)]
pub struct Slowness(Vec<(TensorType, f64)>);

impl Slowness {
    /// Measures types on this machine with so many threads: a tenth of a second each. `None` if it cannot be measured.
    ///
    /// # Errors
    /// If llama.cpp cannot be started.
    pub fn measure(types: &[TensorType], threads: u32) -> Result<Option<Self>, llama::Error> {
        let mut times = Vec::with_capacity(types.len());
        for ty in types {
            let Some(seconds) = llama::writing_time(*ty, threads)? else { return Ok(None) };
            times.push((*ty, seconds));
        }
        Ok(Some(Self::of(times)))
    }

    /// Of types that take so many seconds for each byte.
    fn of(times: Vec<(TensorType, f64)>) -> Self {
        let least = times.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        Self(times.into_iter().map(|(ty, seconds)| (ty, (seconds / least).max(1.0))).collect())
    }

    /// Returns the types, with how much longer each takes than the fastest one.
    pub fn types(&self) -> &[(TensorType, f64)] {
        &self.0
    }

    /// Bytes of the fastest type that take as long as `bytes` of this one.
    fn bytes(&self, ty: TensorType, bytes: u64) -> u64 {
        let factor = self.0.iter().find(|(known, _)| *known == ty).map_or(1.0, |(_, factor)| *factor);
        (bytes as f64 * factor).ceil() as u64
    }
}

/// Returns the types that a tensor may get: all whose blocks divide its rows, up to 16 bits. Of a tensor whose type is given, that
/// type alone, so that its cost is known. None for tensors that stay F32.
pub fn candidates(tensor: &TensorInfo, overrides: &[Override], has_importance: bool) -> Vec<TensorType> {
    if !recipe::is_free(tensor, &[]) {
        return Vec::new();
    }
    if !recipe::is_free(tensor, overrides) {
        let (role, _) = Role::of(&tensor.name);
        let over = overrides.iter().find(|over| over.matches(&tensor.name, role));
        return over.map(|over| over.ty).into_iter().collect();
    }
    let fits = |ty: &TensorType| ty.row_bytes(tensor.row_len()).is_some() && *ty != TensorType::F32;
    let allowed = |importance: ImportanceUse| importance != ImportanceUse::Required || has_importance;
    FORMATS.iter().filter(|format| allowed(format.importance)).map(|format| format.ty).filter(fits).collect()
}

/// The type that a tensor gets, and what that does.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Allocated {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<u32>,
    /// The type.
    #[serde(rename = "type", serialize_with = "recipe::type_name")]
    pub ty: TensorType,
    /// Bytes in that type, without padding.
    pub bytes: u64,
    /// Nats per token that the errors of its weights cost; `None` if that was not measured.
    pub nats: Option<f64>,
    /// Nats per token for each byte that the next smaller type of use would save: what the last bytes buy. `None` where
    /// there was no choice, or it is the smallest.
    pub nats_a_byte: Option<f64>,
    /// Whether the type was chosen here.
    pub is_free: bool,
}

/// A type for each tensor of a model.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Allocation {
    /// All tensors, in the order of the plan.
    pub tensors: Vec<Allocated>,
    /// Nats per token of all tensors that were measured: the predicted KL divergence from the original.
    pub nats: f64,
    /// The part of it that another choice might save at most.
    pub gap: f64,
}

impl Allocation {
    /// Checks that types could be chosen for `file_bytes`, whatever they cost, before that is measured: see [`Self::choose`].
    ///
    /// # Errors
    /// If the smallest types take more, or the largest less. The bytes of the error are those of files.
    pub fn check(
        plan: &Plan,
        overrides: &[Override],
        has_importance: bool,
        others: u64,
        file_bytes: u64,
    ) -> Result<(), OutOfRange> {
        let sizes = |tensor: &PlannedTensor| -> (u64, u64) {
            let info = tensor.info();
            let free = recipe::is_free(&info, overrides);
            let types = if free { candidates(&info, overrides, has_importance) } else { Vec::new() };
            let sizes = types.into_iter().filter_map(|ty| TensorInfo { ty, ..info.clone() }.n_bytes());
            let range = sizes.fold(None, |range: Option<(u64, u64)>, bytes| {
                Some(range.map_or((bytes, bytes), |(least, most)| (least.min(bytes), most.max(bytes))))
            });
            range.unwrap_or((tensor.bytes, tensor.bytes))
        };
        let add = |(least, most): (u64, u64), tensor: &PlannedTensor| {
            let (smallest, largest) = sizes(tensor);
            (least.saturating_add(padded(smallest)), most.saturating_add(padded(largest)))
        };
        let (least, most) = plan.tensors.iter().fold((others, others), add);
        match (least..=most).contains(&file_bytes) {
            true => Ok(()),
            false => Err(OutOfRange { budget: file_bytes, least, most }),
        }
    }

    /// Chooses types for the tensors of `plan`, whose other types stay as they are, so that files whose bytes beside tensors are
    /// `others` have at most `file_bytes`. With `slowness`, they also take no longer while a token is written than a file of
    /// `file_bytes` does that is all of the fastest type.
    ///
    /// # Errors
    /// If the smallest types take more, or the largest of use less. The bytes of the error are those of files.
    pub fn choose(
        plan: &Plan,
        costs: &[Costs],
        overrides: &[Override],
        others: u64,
        file_bytes: u64,
        slowness: Option<&Slowness>,
    ) -> Result<Self, OutOfRange> {
        let known: BTreeMap<&str, &Costs> = costs.iter().map(|costs| (costs.tensor.as_str(), costs)).collect();
        let options = |tensor: &PlannedTensor| -> Vec<(TensorType, u64, f64)> {
            let is_free = recipe::is_free(&tensor.info(), overrides);
            let Some(costs) = known.get(tensor.name.as_str()).filter(|_| is_free) else { return Vec::new() };
            let of = |(ty, nats): &(TensorType, f64)| {
                let bytes = TensorInfo { ty: *ty, ..tensor.info() }.n_bytes()?;
                Some((*ty, bytes, *nats)).filter(|_| nats.is_finite())
            };
            costs.types.iter().filter_map(of).collect()
        };
        let options: Vec<_> = plan.tensors.iter().map(options).collect();
        let free: Vec<usize> = (0..options.len()).filter(|at| !options[*at].is_empty()).collect();
        let has_output = plan.tensors.iter().any(|tensor| tensor.role == Role::Output);
        // Of an embedding that is no output matrix, one row is read.
        let counted = |tensor: &PlannedTensor, ty: TensorType, bytes: u64| match slowness {
            Some(slowness) if !(has_output && tensor.role == Role::TokenEmbedding) => padded(slowness.bytes(ty, bytes)),
            _ => padded(bytes),
        };
        let fixed = plan.tensors.iter().zip(&options).filter(|(_, options)| options.is_empty());
        let fixed = fixed.map(|(tensor, _)| counted(tensor, tensor.ty, tensor.bytes)).fold(others, u64::saturating_add);
        let items: Vec<Vec<Choice>> = free
            .iter()
            .map(|at| {
                let choice = |(ty, bytes, cost): &(TensorType, u64, f64)| Choice {
                    bytes: counted(&plan.tensors[*at], *ty, *bytes),
                    cost: *cost,
                };
                options[*at].iter().map(choice).collect()
            })
            .collect();
        let of_files = |bytes: u64| bytes.saturating_add(fixed);
        let found = match file_bytes.checked_sub(fixed) {
            Some(budget) => allocate::allocate(&items, budget),
            None => Err(allocate::allocate(&items, 0).err().unwrap_or(OutOfRange { budget: 0, least: 0, most: 0 })),
        };
        let found = found.map_err(|OutOfRange { least, most, .. }| OutOfRange {
            budget: file_bytes,
            least: of_files(least),
            most: of_files(most),
        })?;
        let mut of_tensor: Vec<Option<usize>> = vec![None; options.len()];
        free.iter().zip(&found.chosen).for_each(|(at, chosen)| of_tensor[*at] = Some(*chosen));
        let allocated = |(at, tensor): (usize, &PlannedTensor)| {
            let PlannedTensor { name, role, layer, ty, bytes, .. } = tensor;
            let base = Allocated {
                name: name.clone(),
                role: *role,
                layer: *layer,
                ty: *ty,
                bytes: *bytes,
                nats: None,
                nats_a_byte: None,
                is_free: false,
            };
            let Some(chosen) = of_tensor[at] else {
                let costs = known.get(name.as_str()).and_then(|costs| costs.types.iter().find(|(of, _)| of == ty));
                return Allocated { nats: costs.map(|(_, nats)| *nats), ..base };
            };
            let (ty, bytes, nats) = options[at][chosen];
            let smaller = options[at].iter().filter(|option| option.1 < bytes);
            let a_byte = smaller.map(|(_, less, more)| (more - nats) / (bytes - less) as f64);
            let nats_a_byte = a_byte.min_by(f64::total_cmp);
            Allocated { ty, bytes, nats: Some(nats), nats_a_byte, is_free: true, ..base }
        };
        let tensors: Vec<_> = plan.tensors.iter().enumerate().map(allocated).collect();
        let nats = tensors.iter().filter_map(|tensor| tensor.nats).sum();
        Ok(Self { tensors, nats, gap: found.gap() })
    }

    /// Returns the text of a recipe that gives each tensor its type.
    pub fn recipe_text(&self, name: &str, description: &str) -> String {
        let mut of_type: BTreeMap<&str, u64> = BTreeMap::new();
        let chosen = || self.tensors.iter().filter(|tensor| tensor.role.has_choice() && tensor.is_chosen());
        chosen().for_each(|tensor| *of_type.entry(tensor.ty.name()).or_default() += tensor.bytes);
        let most = of_type.iter().max_by_key(|(_, bytes)| **bytes).map_or("F16", |(ty, _)| ty);
        let quoted = |text: &str| toml::Value::String(text.to_string()).to_string();
        let mut text = format!("name = {}\ndescription = {}\n", quoted(name), quoted(description));
        let _ = writeln!(text, "type = {}", quoted(&most.to_lowercase()));
        // By role and type, in the order of the model.
        let mut groups: Vec<(Role, TensorType, Vec<&Allocated>)> = Vec::new();
        for tensor in chosen() {
            match groups.iter_mut().find(|(role, ty, _)| (*role, *ty) == (tensor.role, tensor.ty)) {
                Some((_, _, tensors)) => tensors.push(tensor),
                None => groups.push((tensor.role, tensor.ty, vec![tensor])),
            }
        }
        groups.sort_by_key(|(role, ty, _)| (*role, std::cmp::Reverse(order(*ty))));
        for (role, ty, tensors) in &groups {
            let _ = write!(text, "\n[[rule]]\nrole = {}\n", quoted(role.name()));
            let is_all = groups.iter().filter(|(other, ..)| other == role).count() == 1;
            let layers: Vec<u32> = tensors.iter().filter_map(|tensor| tensor.layer).collect();
            if !is_all && !layers.is_empty() {
                let _ = writeln!(text, "layers = [{}]", ranges(&layers).join(", "));
            }
            let nats: f64 = tensors.iter().filter_map(|tensor| tensor.nats).sum();
            let _ = writeln!(text, "type = {}", quoted(&ty.name().to_lowercase()));
            let _ = writeln!(text, "why = {}", quoted(&format!("costs {nats:.2e} nats per token, as measured")));
        }
        text
    }
}

impl Allocated {
    /// Whether a recipe has to give it its type.
    fn is_chosen(&self) -> bool {
        self.is_free || self.nats.is_some()
    }
}

/// The place of a type in the order of sizes, the smallest first.
fn order(ty: TensorType) -> usize {
    FORMATS.iter().rev().position(|format| format.ty == ty).unwrap_or(0)
}

/// Bytes of a tensor with what follows it in a file.
fn padded(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(DEFAULT_ALIGNMENT).unwrap_or(u64::MAX)
}

/// Layers as recipes write them: numbers, and ranges without their end.
fn ranges(layers: &[u32]) -> Vec<String> {
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    layers.dedup();
    let runs = layers.chunk_by(|a, b| a + 1 == *b);
    let word = |run: &[u32]| match run {
        [one] => one.to_string(),
        run => format!("\"{}..{}\"", run[0], run[run.len() - 1] + 1),
    };
    runs.map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{self, Hyperparameters};
    use crate::engine::SessionOptions;
    use crate::placement::Machine;
    use crate::recipe::Recipe;

    /// A small model whose rows every block divides.
    fn small() -> (Hyperparameters, Vec<TensorInfo>) {
        let shape = Hyperparameters {
            n_layers: 4,
            hidden: 256,
            ffn: 768,
            head_dim: 64,
            vocab: 512,
            ..Hyperparameters::yi_6b()
        };
        let tensors = arch::tensors(&shape, TensorType::BF16);
        (shape, tensors)
    }

    fn overrides(texts: &[&str]) -> Vec<Override> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Costs as of weights alike, where later layers matter more.
    fn costs(tensors: &[TensorInfo], overrides: &[Override]) -> Vec<Costs> {
        let of = |tensor: &TensorInfo| {
            let (_, layer) = Role::of(&tensor.name);
            let matters = f64::from(1 + layer.unwrap_or(5)) * 1e-3;
            let nats = |ty: TensorType| {
                let bits = (ty.block_bytes() * 8) as f64 / ty.block_len() as f64;
                if bits >= 16.0 { 0.0 } else { matters * (-bits * 4f64.ln()).exp() }
            };
            let types = candidates(tensor, overrides, false);
            Costs { tensor: tensor.name.clone(), types: types.into_iter().map(|ty| (ty, nats(ty))).collect() }
        };
        tensors.iter().map(of).filter(|costs| !costs.types.is_empty()).collect()
    }

    fn planned(recipe: &Recipe, overrides: &[Override]) -> Plan {
        let (shape, tensors) = small();
        recipe::plan(recipe, &shape.topology(), &tensors, false, overrides).unwrap()
    }

    #[test]
    fn the_recipe_of_a_choice_gives_each_tensor_its_type() {
        let (_, tensors) = small();
        for texts in [&[][..], &["ffn_down=Q8_0", "blk.2.attn_*=Q4_0"]] {
            let overrides = overrides(texts);
            let costs = costs(&tensors, &overrides);
            let plan = planned(Recipe::builtin("F16").unwrap(), &overrides);
            let OutOfRange { least, most, .. } =
                Allocation::choose(&plan, &costs, &overrides, 1000, 0, None).unwrap_err();
            // Known without the costs.
            let check = |bytes: u64| Allocation::check(&plan, &overrides, false, 1000, bytes);
            assert!(check(least).is_ok() && check(most).is_ok());
            for budget in [0, least - 1, most + 1] {
                assert_eq!(check(budget), Err(OutOfRange { budget, least, most }));
            }
            for part in [0.0, 0.1, 0.3, 0.7, 1.0] {
                let bytes = least + (part * (most - least) as f64) as u64;
                let chosen = Allocation::choose(&plan, &costs, &overrides, 1000, bytes, None).unwrap();
                let recipe = Recipe::from_toml(&chosen.recipe_text("4.5bpw \"of\"", "for a test"), "a test").unwrap();
                assert_eq!((recipe.name.as_str(), recipe.description.as_str()), ("4.5bpw \"of\"", "for a test"));
                // The types that were given are in the recipe, too.
                let again = planned(&recipe, &[]);
                for (wanted, found) in chosen.tensors.iter().zip(&again.tensors) {
                    assert_eq!((wanted.ty, wanted.bytes), (found.ty, found.bytes), "{}", wanted.name);
                }
                let files = 1000 + again.tensors.iter().map(|tensor| padded(tensor.bytes)).sum::<u64>();
                assert!(files <= bytes, "{files} of {bytes}");
                let nats: f64 = chosen.tensors.iter().filter_map(|tensor| tensor.nats).sum();
                assert_eq!(nats, chosen.nats);
                let is_given = |tensor: &&Allocated| !texts.is_empty() && tensor.role == Role::FfnDown;
                assert!(chosen.tensors.iter().filter(is_given).all(|tensor| tensor.ty == TensorType::Q8_0));
            }
        }
    }

    #[test]
    fn what_is_slow_here_is_chosen_where_it_is_worth_its_time() {
        let (_, tensors) = small();
        let (costs, plan) = (costs(&tensors, &[]), planned(Recipe::builtin("F16").unwrap(), &[]));
        let OutOfRange { least, most, .. } = Allocation::choose(&plan, &costs, &[], 0, 0, None).unwrap_err();
        let bytes = least + (most - least) / 4;
        let chosen = |slowness: Option<&Slowness>| Allocation::choose(&plan, &costs, &[], 0, bytes, slowness).unwrap();
        let nearest = chosen(None);
        let used = nearest.tensors.iter().find(|tensor| tensor.is_free && tensor.role != Role::TokenEmbedding).unwrap();
        let times = |slow: f64| {
            let seconds = |ty: TensorType| if ty == used.ty { slow } else { 1e-11 };
            Slowness::of(FORMATS.iter().map(|format| (format.ty, seconds(format.ty))).collect())
        };
        assert_eq!(chosen(Some(&times(1e-11))), nearest);
        let slowness = times(2.5e-11);
        assert!(slowness.types().iter().all(|(_, factor)| *factor == 1.0 || (*factor - 2.5).abs() < 1e-9));
        let preferred = chosen(Some(&slowness));
        let takes = |choice: &Allocation| -> u64 {
            let read = choice.tensors.iter().filter(|tensor| tensor.role != Role::TokenEmbedding);
            read.map(|tensor| slowness.bytes(tensor.ty, tensor.bytes)).sum()
        };
        assert!(takes(&preferred) <= bytes && takes(&nearest) > takes(&preferred));
        assert!(preferred.nats >= nearest.nats);
    }

    #[test]
    fn candidates_fit_the_rows_and_no_vector_has_any() {
        let tensor =
            |name: &str, dims: &[u64]| TensorInfo { name: name.into(), dims: dims.to_vec(), ty: TensorType::F32 };
        let of = |name: &str, dims: &[u64], texts: &[&str]| candidates(&tensor(name, dims), &overrides(texts), false);
        assert_eq!(of("output_norm.weight", &[256], &[]), []);
        assert_eq!(of("blk.0.attn_norm.weight", &[256], &["blk.0.*=Q4_0"]), []);
        let all = of("blk.0.ffn_up.weight", &[256, 8], &[]);
        assert!(all.contains(&TensorType::Q2_K) && all.contains(&TensorType::F16) && !all.contains(&TensorType::F32));
        let short = of("blk.0.ffn_up.weight", &[576, 8], &[]);
        assert!(short.contains(&TensorType::IQ4_NL) && !short.contains(&TensorType::Q4_K));
        assert_eq!(of("blk.0.ffn_up.weight", &[33, 8], &[]), [TensorType::F16, TensorType::BF16]);
        assert_eq!(of("blk.0.ffn_up.weight", &[256, 8], &["ffn_up=Q5_1"]), [TensorType::Q5_1]);
    }

    #[test]
    fn a_target_leaves_room_for_what_else_is_needed() {
        let metadata = Metadata::new();
        let context = SessionOptions::default().size(None);
        let bytes = |target: Target| target.file_bytes(1000, 80, &metadata, &context);
        assert_eq!(bytes(Target::FileBytes(18 << 30)), 18 << 30);
        assert_eq!(bytes(Target::BitsPerWeight(4.5)), 1045);
        assert_eq!(bytes(Target::Memory(1 << 30)), 0);
        // What is chosen for a machine fits in it, and the system has its part.
        for memory in [8_000_000_000, 24_000_000_000, 64 << 30] {
            let weight_bytes = bytes(Target::Memory(memory));
            let shape = Shape::new(&metadata, weight_bytes);
            let machine = Machine { total: memory - reserved_bytes(memory), available: memory };
            assert_eq!(machine.check(&shape, &context, 0, 0), Ok(()));
            assert!(machine.check(&Shape { weight_bytes: weight_bytes + 1, ..shape }, &context, 0, 0).is_err());
        }
    }

    #[test]
    fn layers_are_written_as_recipes_read_them() {
        assert_eq!(ranges(&[3, 0, 1, 2, 7, 9, 10]), ["\"0..4\"", "7", "\"9..11\""]);
    }
}
