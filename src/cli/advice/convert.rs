//! What to type when something goes wrong with conversions: with the source, the recipe, an adapter or the output.

use std::error::Error;

use crate::arch::{self, Quantizer};
use crate::convert::{self, Left, lora};
use crate::{checkpoint, pass, recipe};

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref() {
        return of_conversion(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_source(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_recipe(error);
    }
    if let Some(error) = cause.downcast_ref() {
        return of_checkpoint(error);
    }
    None
}

/// Advice on what went wrong with a conversion.
pub fn of_conversion(error: &convert::Error) -> Option<String> {
    use convert::Error;
    let words = match error {
        Error::Source(error) => return of_source(error),
        Error::Recipe(error) => return of_recipe(error),
        Error::Lora(error) => return of_adapter(error),
        Error::OutputExists { .. } => "pass --force to replace it, or -o to write elsewhere",
        Error::OutputIsFolder { .. } => "give -o the name of a file",
        Error::OutputIsSpecial { .. } | Error::OutputIsSource { .. } => "give -o another name",
        Error::NoRoom { .. } => "make room, or write to another disk with -o",
        Error::Busy { .. } => "wait until it is done, or write elsewhere with -o",
        Error::NotJournal { .. } => "move it away, or give -o another name",
        Error::UnknownPartial { .. } => "remove it, or pass --restart to start over",
        Error::Unfinished { error, left } => {
            let again = "the same command continues from there (--restart starts over)".to_string();
            let again = matches!(left, Left::Work { .. }).then_some(again);
            let words: Vec<_> = [again, of_conversion(error)].into_iter().flatten().collect();
            return (!words.is_empty()).then(|| words.join("; "));
        }
        _ => return None,
    };
    Some(words.to_string())
}

/// Advice on what is wrong with a source.
pub fn of_source(error: &pass::Error) -> Option<String> {
    use pass::Error;
    let words = match error {
        Error::Checkpoint(error) => return of_checkpoint(error),
        Error::NoSource { path } => return super::files::of_path(path),
        Error::Arch { source, .. } => return of_architecture(source),
        Error::TokenizerOfGguf { .. } => "leave out --tokenizer",
        Error::AlreadyQuantized { .. } => {
            "start from the 16-bit original, or pass --allow-requantize to convert it anyway"
        }
        Error::NotFinite { .. } => "check the download, or pass --allow-nan to convert it anyway",
        Error::BeyondF16 { ty: crate::gguf::TensorType::BF16, .. } => {
            "pass --type PATTERN=F32 to give this tensor F32, or --allow-nan to convert it anyway"
        }
        Error::BeyondF16 { .. } => {
            "pass --type PATTERN=BF16 to give this tensor BF16, or --allow-nan to convert it anyway"
        }
        _ => return None,
    };
    Some(words.to_string())
}

fn of_architecture(error: &arch::Error) -> Option<String> {
    let words = match error {
        arch::Error::Quantized { by: Quantizer::Bitsandbytes4 | Quantizer::Bitsandbytes8, .. } => {
            "if it is a fine-tune, merge its adapter into the 16-bit model, and not into the one that was loaded in 4 or 8 \
             bits, and convert the result"
        }
        arch::Error::Quantized { by: Quantizer::Mlx, .. } => {
            "'mlx_lm.convert --dequantize' makes one of it, and 'mlx_lm.fuse --dequantize' of a fine-tune"
        }
        arch::Error::Quantized { .. } | arch::Error::QuantizedKey { .. } => {
            "the model's page on Hugging Face names the model that it was made from"
        }
        _ => return None,
    };
    Some(words.to_string())
}

fn of_recipe(error: &recipe::Error) -> Option<String> {
    match error {
        recipe::Error::UnknownRecipe { .. } => Some("'nibble quants' says what each is for".to_string()),
        recipe::Error::UnknownBase { .. } => Some("'nibble quants' lists the recipes".to_string()),
        _ => None,
    }
}

fn of_checkpoint(error: &checkpoint::Error) -> Option<String> {
    match error {
        checkpoint::Error::OnlyAdapter { .. } => {
            Some("or make a GGUF of the adapter alone with 'nibble convert'".to_string())
        }
        checkpoint::Error::NotFound(path) => super::files::of_path(path),
        _ => None,
    }
}

fn of_adapter(error: &lora::Error) -> Option<String> {
    use lora::{Error, ModelOnly};
    let words = match error {
        Error::Checkpoint(error) => return of_checkpoint(error),
        Error::NoBase { id, .. } => {
            let words = "pass --base with its folder (config.json is enough) or a GGUF of it";
            let id = super::files::hub_id(id.trim().trim_matches(['(', ')']).as_ref());
            let download = id.and_then(|id| {
                let name = id.split_once('/')?.1;
                Some(format!("; 'hf download {id} config.json --local-dir {name}' downloads it"))
            });
            return Some(format!("{words}{}", download.unwrap_or_default()));
        }
        Error::BaseIsAdapter { .. } => "pass --base with that model",
        Error::NotFinite { .. } => "check the download, or pass --allow-nan to convert it anyway",
        Error::BeyondF16 { .. } => "convert with -q F32 or -q BF16",
        Error::Recipe { .. } => "pass -q F32, F16 or BF16",
        Error::ModelOnly(ModelOnly::Overrides) => "leave out --type",
        Error::ModelOnly(ModelOnly::Split) => "leave out --split-max-size",
        Error::ModelOnly(ModelOnly::RecipeFile) => "pass -q F32, F16 or BF16 instead",
        Error::ModelOnly(ModelOnly::Importance) => "leave out --importance",
        _ => return None,
    };
    Some(words.to_string())
}
