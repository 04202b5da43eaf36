//! What to type where a model is wanted and the path leads to none: the name of a model on Hugging Face, or its folder
//! where a GGUF file is wanted.

use std::error::Error;
use std::path::Path;

use crate::gguf::{self, Problem};
use crate::{checkpoint, pass, verify, weights};

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = of_gguf(cause) {
        return match error.problem {
            Problem::Open(_) | Problem::Folder => of_path(&error.path),
            _ => None,
        };
    }
    match cause.downcast_ref()? {
        pass::Error::NoSource { path } => of_path(path),
        pass::Error::Checkpoint(checkpoint::Error::NotFound(path)) => of_path(path),
        _ => None,
    }
}

/// Returns the error of a GGUF file that `cause` is, or that it says and hides from the chain of causes.
fn of_gguf<'e>(cause: &'e (dyn Error + 'static)) -> Option<&'e gguf::Error> {
    if let Some(error) = cause.downcast_ref::<gguf::Error>() {
        return Some(error);
    }
    if let Some(verify::Error::Gguf(error) | verify::Error::Source(pass::Error::Gguf(error))) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(weights::Error::Gguf(error) | weights::Error::Source(pass::Error::Gguf(error))) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(weights::FilesError::Gguf(error)) = cause.downcast_ref() {
        return Some(error);
    }
    #[cfg(feature = "llama")]
    if let Some(error) = of_running(cause) {
        return Some(error);
    }
    None
}

#[cfg(feature = "llama")]
fn of_running<'e>(cause: &'e (dyn Error + 'static)) -> Option<&'e gguf::Error> {
    use crate::evaluate::calibrate;
    use crate::{evaluate, llama};
    if let Some(llama::Error::File(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(calibrate::Error::Model(error)) = cause.downcast_ref() {
        return Some(error);
    }
    match cause.downcast_ref()? {
        evaluate::Error::Gguf(error) => Some(error),
        evaluate::Error::Files(weights::FilesError::Gguf(error)) => Some(error),
        _ => None,
    }
}

/// Returns what to do about a path that should lead to a model and does not.
pub fn of_path(path: &Path) -> Option<String> {
    if path.is_dir() {
        let is_checkpoint = path.join("config.json").is_file();
        return is_checkpoint.then(|| format!("'nibble convert {}' makes one from this model", path.display()));
    }
    if path.exists() {
        return None;
    }
    // Where a folder is wanted, what is missing is a file in it.
    let is_config = matches!(path.file_name()?.to_str()?, "config.json" | "adapter_config.json");
    let id = hub_id(if is_config { path.parent()? } else { path })?;
    let name = id.split_once('/').map_or(id.as_str(), |(_, name)| name);
    Some(if name.to_ascii_uppercase().ends_with("GGUF") {
        format!(
            "if it is a model on Hugging Face, 'hf download {id} --include \"*Q4_K_M*\" --local-dir {name}' downloads a \
             file of it; give nibble that file"
        )
    } else {
        format!(
            "if it is a model on Hugging Face, 'hf download {id} --local-dir {name}' downloads it, and 'nibble convert \
             {name}' makes a GGUF of it"
        )
    })
}

/// Returns the name that Hugging Face has for a model, such as `01-ai/Yi-6B-Chat`, if a path looks like one, or like the
/// address of one.
pub fn hub_id(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let of_scheme = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let hosts = ["huggingface.co/", "hf.co/", "hf-mirror.com/"];
    let address = hosts.iter().find_map(|host| of_scheme.unwrap_or(text).strip_prefix(host));
    if of_scheme.is_some() && address.is_none() {
        return None;
    }
    // An address may go on to a file or a branch, and llama.cpp's names to a quantization.
    let mut parts = address.unwrap_or(text).split('/');
    let (owner, name) = (parts.next()?, parts.next()?);
    let name = name.split_once([':', '@', '?']).map_or(name, |(name, _)| name);
    let is_word = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.len() <= 96 && text.chars().all(plain)
    };
    let is_file = [".gguf", ".safetensors", ".bin", ".json", ".txt"].iter().any(|end| name.ends_with(end));
    let goes_on = address.is_none() && parts.next().is_some_and(|rest| !rest.is_empty());
    // In a folder that exists, it is a file that is missing.
    let is_local = address.is_none() && Path::new(owner).is_dir();
    let is_id = is_word(owner) && is_word(name) && !is_file && !goes_on && !is_local;
    is_id.then(|| format!("{owner}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_on_the_hub_are_told_from_paths() {
        let id = |text: &str| hub_id(Path::new(text));
        for text in [
            "01-ai/Yi-6B-Chat",
            "01-ai/Yi-6B-Chat/",
            "01-ai/Yi-6B-Chat:Q4_K_M",
            "https://huggingface.co/01-ai/Yi-6B-Chat",
            "https://huggingface.co/01-ai/Yi-6B-Chat/tree/main",
            "huggingface.co/01-ai/Yi-6B-Chat",
            "hf.co/01-ai/Yi-6B-Chat:Q4_K_M",
        ] {
            assert_eq!(id(text).as_deref(), Some("01-ai/Yi-6B-Chat"), "{text}");
        }
        for text in [
            "Yi-6B-Chat",
            "/models/Yi-6B",
            "./Yi-6B/x",
            "../a/b",
            "~/models",
            "a/b/c",
            "models/yi.gguf",
            "src/nothing",
            "a b/c",
            "零一/万物",
            "",
            "https://example.com/a",
        ] {
            assert_eq!(id(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_of_the_hub_gets_the_command_that_downloads_it() {
        let said = of_path(Path::new("01-ai/Yi-6B-Chat")).unwrap();
        assert!(said.contains("'hf download 01-ai/Yi-6B-Chat --local-dir Yi-6B-Chat'"), "{said}");
        assert!(said.contains("'nibble convert Yi-6B-Chat'"), "{said}");
        assert_eq!(of_path(Path::new("01-ai/Yi-6B-Chat/config.json")).unwrap(), said);
        let gguf = of_path(Path::new("TheBloke/Yi-34B-Chat-GGUF")).unwrap();
        assert!(gguf.contains("--include") && !gguf.contains("nibble convert"), "{gguf}");
        assert_eq!(of_path(Path::new("yi.gguf")), None);
    }
}
