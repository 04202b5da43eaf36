//! What there is to choose from: a file, or what recipes would make of a folder or a known model.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::arch::{self, ARCHITECTURES, Hyperparameters};
use crate::convert::{Job, Options};
use crate::gguf::{Gguf, TensorType};
use crate::llama::n_ctx_train;
use crate::placement::Outline;
use crate::recipe::{PlannedTensor, Recipe, plan};

/// A file that is there, or could be made.
pub(super) struct Candidate {
    /// The recipe's name, or the file's.
    pub name: String,
    pub outline: Outline,
    /// Bytes of the file or files.
    pub file_bytes: u64,
    /// The command that makes it, if it is not there and the source is.
    pub make: Option<String>,
    /// The file to run.
    pub file: PathBuf,
    /// Whether the file is there.
    pub is_there: bool,
}

impl Candidate {
    /// Returns bits a weight, of all tensors.
    pub fn bits(&self) -> f64 {
        let weights = self.outline.tensors().iter().map(|tensor| tensor.n_elements().unwrap_or(0));
        self.outline.tensor_bytes() as f64 * 8.0 / weights.fold(0, u64::saturating_add).max(1) as f64
    }

    pub fn n_ctx_train(&self) -> Option<u32> {
        n_ctx_train(self.outline.metadata())
    }
}

/// The recipes that are tried if none is named: one of each size.
const RECIPES: [&str; 6] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M"];

/// Returns the candidates for what `model` names.
pub(super) fn find(model: &Path, recipes: &[String]) -> anyhow::Result<Vec<Candidate>> {
    if model.is_file() {
        if !recipes.is_empty() {
            bail!(
                "{} is a file, and has its types already; leave out --quantize, or give the folder that it was made from",
                model.display()
            );
        }
        return Ok(vec![of_file(model)?]);
    }
    let default = RECIPES.map(String::from);
    let names = if recipes.is_empty() { &default[..] } else { recipes };
    let recipes = names.iter().map(|name| recipe(name)).collect::<anyhow::Result<Vec<_>>>()?;
    if model.is_dir() {
        return recipes.into_iter().map(|recipe| of_folder(model, recipe)).collect();
    }
    match model.to_str().and_then(Hyperparameters::by_name) {
        Some(hyper) => recipes.iter().map(|recipe| of_known(model, &hyper, recipe)).collect(),
        None => bail!(
            "{}: there is no such file or folder, and it is not the name of a model whose shape is known ({})",
            model.display(),
            Hyperparameters::KNOWN.map(|(name, _)| name).join(", ")
        ),
    }
}

fn recipe(name: &str) -> anyhow::Result<Recipe> {
    let path = Path::new(name);
    match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
        true => Ok(Recipe::from_file(path)?),
        false => Ok(Recipe::find(name)?.clone()),
    }
}

fn of_file(path: &Path) -> anyhow::Result<Candidate> {
    let gguf = Gguf::open(path)?;
    let outline =
        Outline::of(&gguf).with_context(|| format!("{} does not say how many layers it has", path.display()))?;
    let file_bytes = gguf.mappings().map(|mapping| mapping.bytes().len() as u64).sum();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Candidate { name, outline, file_bytes, make: None, file: path.to_path_buf(), is_there: true })
}

fn of_folder(folder: &Path, recipe: Recipe) -> anyhow::Result<Candidate> {
    let name = recipe.name.clone();
    let job = Job::prepare(folder, Options::new(recipe))?;
    let tensors = job.plan().tensors.iter().map(PlannedTensor::info).collect();
    let outline = Outline::new(job.metadata().clone(), tensors).context("the model has no layers")?;
    let file = job.outputs().first().map(|(path, _)| path.clone()).unwrap_or_default();
    let make = Some(format!("nibble convert {} -q {name}", quoted(folder)));
    Ok(Candidate { name, outline, file_bytes: job.output_bytes(), make, is_there: file.is_file(), file })
}

fn of_known(model: &Path, hyper: &Hyperparameters, recipe: &Recipe) -> anyhow::Result<Candidate> {
    const NAME: &str = "LlamaForCausalLM";
    let architecture = ARCHITECTURES.by_name(NAME).context("nibble knows Llama")?;
    let metadata = architecture.blueprint(&hyper.to_config(NAME))?.metadata;
    let plan = plan(recipe, &hyper.topology(), &arch::tensors(hyper, TensorType::BF16), false, &[])?;
    let tensors = plan.tensors.iter().map(PlannedTensor::info).collect();
    let outline = Outline::without_vocabulary(metadata, tensors, hyper.vocab).context("the model has no layers")?;
    let label = model.file_name().unwrap_or_default().to_string_lossy();
    let file = PathBuf::from(format!("{label}-{}.gguf", recipe.name));
    let name = recipe.name.clone();
    Ok(Candidate { name, file_bytes: outline.tensor_bytes(), outline, make: None, file, is_there: false })
}

/// Returns a path as a shell reads it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_model_has_the_sizes_of_its_recipes() {
        let all = find(Path::new("Yi-34B-Chat"), &[]).unwrap();
        assert_eq!(all.len(), RECIPES.len());
        let four = &all[3];
        assert_eq!((four.name.as_str(), four.outline.n_layers(), four.n_ctx_train()), ("Q4_K_M", 60, Some(4096)));
        assert!((four.bits() - 4.81).abs() < 0.01, "{}", four.bits());
        assert_eq!(four.file_bytes / 100_000_000, 206);
        assert!(all.windows(2).all(|pair| pair[0].file_bytes > pair[1].file_bytes));
        let one = find(Path::new("yi-6b"), &["Q4_0".to_string()]).unwrap();
        assert_eq!((one.len(), one[0].name.as_str()), (1, "Q4_0"));
        for (model, recipe) in [("Yi-35B", "Q4_0"), ("Yi-34B", "Q4_9"), ("nowhere.gguf", "Q4_0")] {
            assert!(find(Path::new(model), &[recipe.to_string()]).is_err(), "{model} {recipe}");
        }
    }

    #[test]
    fn a_path_is_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("a/b-1.gguf")), "a/b-1.gguf");
        assert_eq!(quoted(Path::new("模型.gguf")), "模型.gguf");
        assert_eq!(quoted(Path::new("my model's")), r"'my model'\''s'");
    }
}
