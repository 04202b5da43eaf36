//! Applies a recipe to one model: which type each tensor gets.

use serde::{Serialize, Serializer};

use super::fallback::fallback;
use super::rule::{Circumstances, roles_with_choice};
use super::{Error, Override, Recipe};
use crate::arch::{Role, Topology};
use crate::base::suggest::suggest;
use crate::gguf::{TensorInfo, TensorType};
use crate::quant;

/// The type that each tensor of a model gets, in the order in which the tensors were given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The name of the recipe.
    pub recipe: String,
    /// `general.file_type` of the file to be.
    pub file_type: u32,
    /// Every tensor of the model.
    pub tensors: Vec<PlannedTensor>,
}

/// The type that one tensor gets, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedTensor {
    /// Its GGUF name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<u32>,
    /// Sizes, fastest dimension first.
    pub dims: Vec<u64>,
    /// The type it has.
    #[serde(serialize_with = "type_name")]
    pub source: TensorType,
    /// The type it gets.
    #[serde(rename = "type", serialize_with = "type_name")]
    pub ty: TensorType,
    /// The reason, for people.
    pub why: String,
    /// The type that was chosen first, if its block does not divide the rows.
    #[serde(serialize_with = "maybe_type_name")]
    pub fallback_from: Option<TensorType>,
    /// Bytes of the type it gets, without padding.
    pub bytes: u64,
}

impl PlannedTensor {
    /// Returns the tensor as a GGUF file will describe it.
    pub fn info(&self) -> TensorInfo {
        TensorInfo { name: self.name.clone(), dims: self.dims.clone(), ty: self.ty }
    }
}

impl Plan {
    /// Returns the bytes of all tensors, without padding and metadata.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
    }

    /// Returns the number of weights of all tensors.
    pub fn n_weights(&self) -> u64 {
        let weights = |tensor: &PlannedTensor| tensor.info().n_elements().unwrap_or(u64::MAX);
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(weights(tensor)))
    }

    /// Returns the mean bits per weight of the whole model, including vectors and scales; 0 for a model without weights.
    pub fn bits_per_weight(&self) -> f64 {
        match self.n_weights() {
            0 => 0.0,
            n => self.total_bytes() as f64 * 8.0 / n as f64,
        }
    }

    /// Returns how many tensors did not get the type that was chosen for them.
    pub fn n_fallbacks(&self) -> usize {
        self.tensors.iter().filter(|tensor| tensor.fallback_from.is_some()).count()
    }
}

/// Applies a recipe to a model. No tensor's type depends on the order of `tensors`.
///
/// `tensors` are all of the model's, by their GGUF names, with the types they have; a model without `output.weight` is
/// taken to use its token embedding as output. `has_importance` says whether importance will steer the quantizers. The
/// first of `overrides` that matches a tensor decides, before any rule.
///
/// Norms, biases and other vectors become F32, whatever the recipe. An override that reaches one through a `*` passes
/// over it.
///
/// # Errors
/// If a tensor belongs to a layer that the model does not have, is larger than can be counted, or has a type that
/// cannot be read; or if an override matches nothing, asks for a type whose blocks do not divide a tensor's rows, or
/// names a tensor that stays F32.
pub fn plan(
    recipe: &Recipe,
    topology: &Topology,
    tensors: &[TensorInfo],
    has_importance: bool,
    overrides: &[Override],
) -> Result<Plan, Error> {
    let tied = !tensors.iter().any(|tensor| Role::of(&tensor.name).0 == Role::Output);
    let at = Circumstances { topology: *topology, tied, importance: has_importance };
    let tensors = tensors
        .iter()
        .map(|tensor| plan_tensor(recipe, &at, tensor, overrides))
        .collect::<Result<Vec<PlannedTensor>, Error>>()?;
    for over in overrides {
        check_reached(over, overrides, &tensors)?;
    }
    Ok(Plan { recipe: recipe.name.clone(), file_type: recipe.file_type, tensors })
}

fn plan_tensor(
    recipe: &Recipe,
    at: &Circumstances,
    tensor: &TensorInfo,
    overrides: &[Override],
) -> Result<PlannedTensor, Error> {
    let (role, layer) = Role::of(&tensor.name);
    let n_layers = at.topology.n_layers;
    if let Some(layer) = layer.filter(|layer| *layer >= n_layers) {
        return Err(Error::LayerBeyondModel { tensor: tensor.name.clone(), layer, n_layers });
    }

    let choice = match keep(tensor, role) {
        Some(kept) => {
            refuse_to_change(tensor, kept.ty, overrides)?;
            kept
        }
        None => match overrides.iter().find(|over| over.matches(&tensor.name, role)) {
            Some(over) => by_override(over, tensor)?,
            None => by_rule(recipe, at, tensor, role, layer),
        },
    };
    let Choice { ty, why, fallback_from } = choice;

    if ty != tensor.ty && quant::decoder(tensor.ty).is_none() {
        return Err(Error::Source { tensor: tensor.name.clone(), found: tensor.ty, wanted: ty });
    }
    let too_large = || Error::TooLarge { tensor: tensor.name.clone(), dims: tensor.dims.clone() };
    let (name, dims, source) = (tensor.name.clone(), tensor.dims.clone(), tensor.ty);
    let bytes = TensorInfo { name: String::new(), dims: dims.clone(), ty }.n_bytes().ok_or_else(too_large)?;
    Ok(PlannedTensor { name, role, layer, dims, source, ty, why, fallback_from, bytes })
}

/// Returns whether the type of a tensor is for the recipe to choose: whether no override does, and it need not stay F32.
pub fn is_free(tensor: &TensorInfo, overrides: &[Override]) -> bool {
    let (role, _) = Role::of(&tensor.name);
    keep(tensor, role).is_none() && !overrides.iter().any(|over| over.matches(&tensor.name, role))
}

/// A tensor's type and why it was chosen.
struct Choice {
    ty: TensorType,
    why: String,
    fallback_from: Option<TensorType>,
}

/// Returns the type of a tensor that no recipe may change. Source: `tensor_allows_quantization` in llama.cpp's `src/llama-quant.cpp`,
/// and its converter, which writes vectors as F32.
fn keep(tensor: &TensorInfo, role: Role) -> Option<Choice> {
    // As ggml counts dimensions, a matrix of one row is a vector.
    let is_vector = tensor.dims.iter().skip(1).all(|&size| size == 1);
    let why = match role {
        Role::Norm => "norms are few, and llama.cpp computes with them in F32",
        Role::Bias => "biases are few, and llama.cpp computes with them in F32",
        Role::RopeFactors => "factors of the rotary frequencies are few, and every position depends on them",
        _ if is_vector => "vectors are few, and llama.cpp computes with them in F32",
        Role::Other if tensor.name.ends_with("ffn_gate_inp.weight") => "it decides which experts see a token",
        Role::Other if !tensor.name.ends_with("weight") => "not known to be weights",
        _ => return None,
    };
    let is_integer = matches!(tensor.ty, TensorType::I8 | TensorType::I16 | TensorType::I32 | TensorType::I64);
    let ty = if is_integer { tensor.ty } else { TensorType::F32 };
    Some(Choice { ty, why: why.to_string(), fallback_from: None })
}

/// Refuses an override that names a tensor whose type is fixed. One that reaches it through a `*` is ignored.
fn refuse_to_change(tensor: &TensorInfo, kept: TensorType, overrides: &[Override]) -> Result<(), Error> {
    match overrides.iter().find(|over| over.pattern == tensor.name && over.ty != kept) {
        Some(Override { pattern, ty }) => {
            Err(Error::OverrideKept { pattern: pattern.clone(), tensor: tensor.name.clone(), ty: *ty })
        }
        None => Ok(()),
    }
}

fn by_override(over: &Override, tensor: &TensorInfo) -> Result<Choice, Error> {
    if over.ty.row_bytes(tensor.row_len()).is_none() {
        return Err(Error::OverrideIndivisible {
            pattern: over.pattern.clone(),
            tensor: tensor.name.clone(),
            ty: over.ty,
            row_len: tensor.row_len(),
        });
    }
    let why = format!("asked for with {}={}", over.pattern, over.ty);
    Ok(Choice { ty: over.ty, why, fallback_from: None })
}

fn by_rule(recipe: &Recipe, at: &Circumstances, tensor: &TensorInfo, role: Role, layer: Option<u32>) -> Choice {
    let (wanted, why) = match recipe.rules.iter().find(|rule| rule.matches(role, layer, at)) {
        Some(rule) => (rule.ty, rule.why.clone()),
        None => (recipe.ty, format!("the type of most of {}", recipe.name)),
    };
    let ty = fallback(wanted, tensor.row_len());
    if ty == wanted {
        return Choice { ty, why, fallback_from: None };
    }
    let (len, row_len) = (wanted.block_len(), tensor.row_len());
    let why = format!("{wanted} has blocks of {len}, which do not divide rows of {row_len} ({why})");
    Choice { ty, why, fallback_from: Some(wanted) }
}

/// Refuses an override that changes nothing: its spelling or its place is a mistake.
fn check_reached(over: &Override, overrides: &[Override], tensors: &[PlannedTensor]) -> Result<(), Error> {
    let mut matched = tensors.iter().filter(|tensor| over.matches(&tensor.name, tensor.role)).peekable();
    let Some(&first) = matched.peek() else {
        let names = tensors
            .iter()
            .map(|tensor| tensor.name.as_str())
            .chain(roles_with_choice().map(|role| -> &str { role.name() }));
        let near = suggest(&over.pattern, names).into_iter().map(str::to_string).collect();
        return Err(Error::OverrideUnused { pattern: over.pattern.clone(), near });
    };
    let decides = |tensor: &PlannedTensor| overrides.iter().find(|o| o.matches(&tensor.name, tensor.role));
    if matched.clone().all(|tensor| decides(tensor) != Some(over)) {
        let by = decides(first).map_or_else(String::new, |by| by.pattern.clone());
        return Err(Error::OverrideShadowed { pattern: over.pattern.clone(), by });
    }
    if matched.all(|tensor| tensor.ty != over.ty) {
        return Err(Error::OverrideKept { pattern: over.pattern.clone(), tensor: first.name.clone(), ty: over.ty });
    }
    Ok(())
}

/// For serde: a type by its name.
pub(crate) fn type_name<S: Serializer>(ty: &TensorType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(ty.name())
}

fn maybe_type_name<S: Serializer>(ty: &Option<TensorType>, serializer: S) -> Result<S::Ok, S::Error> {
    ty.map(TensorType::name).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{self, Hyperparameters};

    fn recipe(name: &str) -> &'static Recipe {
        Recipe::builtin(name).unwrap()
    }

    /// A small model whose rows every block divides.
    fn small() -> Hyperparameters {
        Hyperparameters { n_layers: 4, hidden: 256, ffn: 768, head_dim: 64, vocab: 512, ..Hyperparameters::yi_6b() }
    }

    fn planned(overrides: &[&str]) -> Result<Plan, Error> {
        let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
        plan(recipe("Q4_K_M"), &small().topology(), &arch::tensors(&small(), TensorType::BF16), false, &overrides)
    }

    fn type_of(plan: &Plan, name: &str) -> TensorType {
        plan.tensors.iter().find(|tensor| tensor.name == name).unwrap().ty
    }

    #[test]
    fn no_type_depends_on_the_order_of_the_tensors() {
        let yi_6b = Hyperparameters::yi_6b();
        for recipe in Recipe::all() {
            for importance in [false, true] {
                let mut tensors = arch::tensors(&yi_6b, TensorType::BF16);
                let in_order = plan(recipe, &yi_6b.topology(), &tensors, importance, &[]).unwrap();
                tensors.sort_by_key(|tensor| tensor.name.bytes().rev().collect::<Vec<_>>());
                let mut shuffled = plan(recipe, &yi_6b.topology(), &tensors, importance, &[]).unwrap();
                shuffled.tensors.sort_by_key(|tensor| in_order.tensors.iter().position(|t| t.name == tensor.name));
                assert_eq!(in_order, shuffled);
            }
        }
    }

    #[test]
    fn norms_and_biases_are_f32_under_every_recipe() {
        let shape = Hyperparameters { attention_bias: true, ..small() };
        for recipe in Recipe::all() {
            let mut tensors = arch::tensors(&shape, TensorType::F16);
            tensors.iter_mut().for_each(|tensor| tensor.ty = TensorType::F16);
            let plan = plan(recipe, &shape.topology(), &tensors, false, &[]).unwrap();
            let kept: Vec<_> = plan.tensors.iter().filter(|t| matches!(t.role, Role::Norm | Role::Bias)).collect();
            assert_eq!(kept.len(), 4 * 6 + 1);
            assert!(kept.iter().all(|tensor| tensor.ty == TensorType::F32), "{}", recipe.name);
        }
    }

    #[test]
    fn says_why_and_what_it_would_have_chosen() {
        let shape = Hyperparameters { hidden: 96, ..small() };
        let plan =
            plan(recipe("Q4_K_M"), &shape.topology(), &arch::tensors(&shape, TensorType::F16), false, &[]).unwrap();
        let v = plan.tensors.iter().find(|tensor| tensor.name == "blk.2.attn_v.weight").unwrap();
        assert_eq!((v.ty, v.fallback_from, v.layer), (TensorType::Q8_0, Some(TensorType::Q6_K), Some(2)));
        assert!(
            v.why.starts_with("Q6_K has blocks of 256, which do not divide rows of 96 (where more bits"),
            "{}",
            v.why
        );
        assert_eq!(v.bytes, 4 * 64 * 96 / 32 * 34);
        let json = serde_json::to_value(v).unwrap();
        assert_eq!(
            (&json["type"], &json["source"], &json["fallback_from"]),
            (&"Q8_0".into(), &"F16".into(), &"Q6_K".into())
        );
        assert_eq!((&json["role"], &json["layer"]), (&"attention_v".into(), &2.into()));
        assert!(plan.n_fallbacks() > 0 && plan.n_fallbacks() < plan.tensors.len());
    }

    #[test]
    fn the_first_override_that_matches_decides_before_any_rule() {
        let plan = planned(&["blk.3.ffn_down.weight=F16", "ffn_down=Q8_0", "blk.0.*=Q5_K", "output=Q8_0"]).unwrap();
        assert_eq!(type_of(&plan, "blk.3.ffn_down.weight"), TensorType::F16);
        assert_eq!(type_of(&plan, "blk.0.ffn_down.weight"), TensorType::Q8_0);
        assert_eq!(type_of(&plan, "blk.0.ffn_up.weight"), TensorType::Q5_K);
        assert_eq!(type_of(&plan, "blk.0.attn_norm.weight"), TensorType::F32, "a star passes over it");
        assert_eq!(type_of(&plan, "output.weight"), TensorType::Q8_0);
        assert_eq!(type_of(&plan, "blk.1.ffn_up.weight"), TensorType::Q4_K);
        let up = plan.tensors.iter().find(|tensor| tensor.name == "blk.0.ffn_up.weight").unwrap();
        assert_eq!(up.why, "asked for with blk.0.*=Q5_K");
    }

    #[test]
    fn refuses_overrides_that_cannot_be_obeyed() {
        let message = |overrides: &[&str]| planned(overrides).unwrap_err().to_string();
        for (overrides, words) in [
            (&["ffn_dwon=Q8_0"][..], "no tensor matches 'ffn_dwon' (did you mean ffn_down?)"),
            (&["blk.0.atn_q.weight=Q8_0"], "(did you mean blk.0.attn_q.weight?)"),
            (&["norm=Q8_0"], "one of the roles token_embedding, output,"),
            (&["*=Q8_0", "output=F16"], "every tensor that 'output' matches is taken by '*' before it"),
            (&["output_norm.weight=F16"], "asks for F16, but output_norm.weight stays F32"),
            (&["*_norm.weight=Q8_0"], "asks for Q8_0, but blk.0.attn_norm.weight stays F32"),
        ] {
            assert!(message(overrides).contains(words), "{}", message(overrides));
        }
        let shape = Hyperparameters { hidden: 96, ..small() };
        let over = ["attention_q=Q6_K".parse().unwrap()];
        let error =
            plan(recipe("Q8_0"), &shape.topology(), &arch::tensors(&shape, TensorType::F16), false, &over).unwrap_err();
        let words = "'attention_q' asks for Q6_K, whose blocks of 256 do not divide blk.0.attn_q.weight's rows of 96; Q8_0 would";
        assert_eq!(error.to_string(), words);
        assert!(planned(&["output_norm.weight=F32"]).is_ok(), "that is what it is anyway");
    }

    #[test]
    fn refuses_models_that_do_not_fit_what_is_said_of_them() {
        let one = |name: &str, dims: &[u64], ty| {
            let tensor = TensorInfo { name: name.to_string(), dims: dims.to_vec(), ty };
            plan(recipe("Q4_0"), &small().topology(), &[tensor], false, &[]).unwrap_err().to_string()
        };
        let message = one("blk.4.attn_q.weight", &[256, 256], TensorType::F16);
        assert!(
            message.starts_with("blk.4.attn_q.weight: layer 4, counted from 0, of a model with 4 layers"),
            "{message}"
        );
        let message = one("blk.0.attn_q.weight", &[256, 1 << 40, 1 << 40], TensorType::F16);
        assert!(message.contains("more bytes than can be counted"), "{message}");
        let message = one("blk.0.attn_q.weight", &[256, 256], TensorType::IQ2_XS);
        assert!(message.contains("holds IQ2_XS, which cannot become Q4_0"), "{message}");
        let message = one("output_norm.weight", &[256], TensorType::IQ1_S);
        assert!(message.contains("holds IQ1_S, which cannot become F32"), "{message}");
    }

    #[test]
    fn a_tensor_that_has_its_type_already_is_left_as_it_is() {
        let tensor = TensorInfo { name: "output.weight".to_string(), dims: vec![256, 8], ty: TensorType::Q8_0 };
        let plan = plan(recipe("Q8_0"), &small().topology(), &[tensor], false, &[]).unwrap();
        assert_eq!(plan.total_bytes(), 8 * 8 * 34);
        assert_eq!(plan.bits_per_weight(), 8.5);
    }

    #[test]
    fn a_model_without_tensors_has_a_plan_without_bits() {
        let plan = plan(recipe("Q8_0"), &small().topology(), &[], false, &[]).unwrap();
        assert_eq!((plan.total_bytes(), plan.bits_per_weight()), (0, 0.0));
    }
}
