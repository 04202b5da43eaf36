//! The built-in recipes against plans measured with llama.cpp, and their rules against the shapes that models have.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use super::rule::Circumstances;
use super::{Recipe, SOURCES, plan};
use crate::arch::{self, Hyperparameters, Role};
use crate::gguf::TensorType;
use crate::quant;

fn llama_3_2_1b() -> Hyperparameters {
    Hyperparameters {
        n_layers: 16,
        hidden: 2048,
        ffn: 8192,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        vocab: 128256,
        tied: true,
        ..Hyperparameters::yi_6b()
    }
}

/// A model whose hidden size 256 does not divide.
fn odd_rows() -> Hyperparameters {
    Hyperparameters {
        n_layers: 4,
        hidden: 288,
        ffn: 768,
        n_heads: 6,
        n_kv_heads: 6,
        head_dim: 48,
        vocab: 32000,
        ..Hyperparameters::yi_6b()
    }
}

/// What llama.cpp made of a model under one recipe.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    /// The type of every matrix that `exceptions` does not name.
    default: String,
    exceptions: BTreeMap<String, String>,
    /// Every type that a norm has.
    norms: Vec<String>,
    size_mib: f64,
    bpw: f64,
}

fn golden_plans(file: &str) -> BTreeMap<String, Golden> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/plans").join(file);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_golden_plan_has_the_same_types_and_the_same_size() {
    let mut compared = 0;
    for (file, hyper) in [
        ("yi-34b.json", Hyperparameters::yi_34b()),
        ("yi-9b.json", Hyperparameters::yi_9b()),
        ("yi-6b.json", Hyperparameters::yi_6b()),
        ("llama-3.2-1b.json", llama_3_2_1b()),
        ("odd-rows.json", odd_rows()),
    ] {
        let goldens = golden_plans(file);
        let quantized = Recipe::all().iter().filter(|recipe| recipe.ty.block_len() > 1).count();
        assert_eq!(goldens.len(), 2 * quantized, "{file} has every recipe, with and without importance");
        let tensors = arch::tensors(&hyper, TensorType::F16);
        for (title, golden) in &goldens {
            let (name, importance) = match title.strip_suffix("+importance") {
                Some(name) => (name, true),
                None => (title.as_str(), false),
            };
            let recipe = Recipe::find(name).unwrap();
            let plan = plan(recipe, &hyper.topology(), &tensors, importance, &[]).unwrap();
            let wanted = |text: &str| text.parse::<TensorType>().unwrap();
            for tensor in &plan.tensors {
                let expected = match tensor.role {
                    Role::Norm => {
                        assert_eq!(golden.norms.len(), 1);
                        &golden.norms[0]
                    }
                    _ => golden.exceptions.get(&tensor.name).unwrap_or(&golden.default),
                };
                assert_eq!(tensor.ty, wanted(expected), "{file} {title} {}", tensor.name);
                compared += 1;
            }
            let named: HashSet<&str> = plan.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            assert!(golden.exceptions.keys().all(|name| named.contains(name.as_str())), "{file} {title}");
            let mib = plan.total_bytes() as f64 / (1 << 20) as f64;
            assert!((mib - golden.size_mib).abs() < 0.00501, "{file} {title}: {mib} MiB, not {}", golden.size_mib);
            let bpw = plan.bits_per_weight();
            assert!((bpw - golden.bpw).abs() < 0.00501, "{file} {title}: {bpw} bits, not {}", golden.bpw);
        }
    }
    assert_eq!(compared, 2 * 16 * (543 + 435 + 291 + 146 + 39), "16 recipes, five models");
}

#[test]
fn every_built_in_recipe_can_be_read_and_has_a_name_a_file_and_a_number_of_its_own() {
    let recipes = Recipe::all();
    assert_eq!(recipes.len(), SOURCES.len());
    for (recipe, (file, _)) in recipes.iter().zip(SOURCES) {
        assert_eq!(*file, format!("quant-tables/{}.toml", recipe.name.to_lowercase()));
        assert_eq!(Recipe::builtin(&recipe.name.to_lowercase()), Some(recipe));
    }
    let numbers: HashSet<u32> = recipes.iter().map(|recipe| recipe.file_type).collect();
    assert_eq!(numbers.len(), recipes.len());
    let on_disk = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("quant-tables")).unwrap();
    let mut tables = 0;
    for entry in on_disk {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        tables += usize::from(text.contains("[[rule]]") || text.contains("file_type"));
    }
    assert_eq!(tables, recipes.len(), "a recipe in quant-tables/ is not in the list of recipe/mod.rs");
}

#[test]
fn recipes_are_listed_from_the_most_bits_to_the_fewest() {
    let yi_34b = Hyperparameters::yi_34b();
    let tensors = arch::tensors(&yi_34b, TensorType::BF16);
    let bits = |recipe| plan(recipe, &yi_34b.topology(), &tensors, false, &[]).unwrap().bits_per_weight();
    for pair in Recipe::all().windows(2) {
        assert!(bits(&pair[0]) >= bits(&pair[1]), "{} before {}", pair[0].name, pair[1].name);
    }
}

#[test]
fn every_type_that_may_be_named_has_a_recipe_that_is_mostly_made_of_it() {
    for format in quant::FORMATS {
        assert!(Recipe::all().iter().any(|recipe| recipe.ty == format.ty), "{}", format.ty);
    }
}

#[test]
fn every_rule_is_reached_for_each_of_its_roles_by_the_shape_of_some_model() {
    let llama_2_70b = Hyperparameters {
        n_layers: 80,
        hidden: 8192,
        ffn: 28672,
        n_heads: 64,
        n_kv_heads: 8,
        head_dim: 128,
        vocab: 32000,
        ..Hyperparameters::yi_34b()
    };
    let (yi_6b, yi_9b, yi_34b) = (Hyperparameters::yi_6b(), Hyperparameters::yi_9b(), Hyperparameters::yi_34b());
    let llama_2_7b = Hyperparameters { n_kv_heads: 32, vocab: 32000, ..Hyperparameters::yi_6b() };
    let models = [yi_6b, yi_9b, yi_34b, llama_3_2_1b(), llama_2_70b, llama_2_7b];
    for recipe in Recipe::all() {
        let mut reached = HashSet::new();
        for hyper in &models {
            for importance in [false, true] {
                let at = Circumstances { topology: hyper.topology(), tied: hyper.tied, importance };
                for tensor in arch::tensors(hyper, TensorType::F16) {
                    let (role, layer) = Role::of(&tensor.name);
                    if let Some(rule) = recipe.rules.iter().position(|rule| rule.matches(role, layer, &at)) {
                        reached.insert((rule, role));
                    }
                }
            }
        }
        for (i, rule) in recipe.rules.iter().enumerate() {
            for role in &rule.roles {
                assert!(reached.contains(&(i, *role)), "{}: rule {} never decides for {role:?}", recipe.name, i + 1);
            }
        }
    }
}
