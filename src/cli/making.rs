//! What a file records about its conversion, in words.

use crate::base::display::printable;
use crate::verify::Provenance;

/// The longest list of overrides that is printed whole.
const MOST_OVERRIDES: usize = 4;

/// Returns the rows of a summary about a file's conversion; none if the file does not record it.
pub fn rows(provenance: &Provenance) -> Vec<(&'static str, String)> {
    let mut rows = vec![];
    if let Some(words) = made_by(provenance) {
        rows.push(("Made by", words));
    }
    if let Some(source) = &provenance.source {
        let n = provenance.source_files.len();
        let files = if n == 1 { "file" } else { "files" };
        rows.push(("Made from", format!("{} ({n} {files} of weights)", printable(source))));
    }
    rows
}

fn made_by(provenance: &Provenance) -> Option<String> {
    let mut words = vec![];
    words.extend(provenance.version.as_ref().map(|version| format!("nibble {}", printable(version))));
    words.extend(provenance.recipe.as_ref().map(|recipe| format!("recipe {}", printable(recipe))));
    if !provenance.overrides.is_empty() {
        let some: Vec<_> =
            provenance.overrides.iter().take(MOST_OVERRIDES).map(|text| printable(text).into_owned()).collect();
        let rest = provenance.overrides.len() - some.len();
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        words.push(format!("with {}{rest}", some.join(", ")));
    }
    if provenance.used_importance {
        let name = provenance.importance.as_deref().map(|name| format!(" {}", printable(name))).unwrap_or_default();
        words.push(format!("importance{name}"));
    }
    if provenance.polish.is_some() {
        words.push("polished".to_string());
    }
    if words.is_empty() { None } else { Some(words.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Metadata;

    #[test]
    fn a_making_is_told_in_two_lines() {
        let mut metadata = Metadata::new();
        assert_eq!(rows(&Provenance::of(&metadata)), []);
        metadata.set("nibble.version", "0.1.0");
        metadata.set("nibble.recipe.name", "Q4_K_M");
        metadata.set("nibble.overrides", vec!["output=Q8_0".to_string(), "blk.0.*=Q6_K".to_string()]);
        metadata.set("nibble.source.name", "零一\x1b");
        metadata.set("nibble.source.files", vec!["model.safetensors".to_string()]);
        let wanted = [
            ("Made by", "nibble 0.1.0, recipe Q4_K_M, with output=Q8_0, blk.0.*=Q6_K".to_string()),
            ("Made from", "零一\\u{1b} (1 file of weights)".to_string()),
        ];
        assert_eq!(rows(&Provenance::of(&metadata)), wanted);
        let mut metadata = Metadata::new();
        metadata.set("quantize.imatrix.file", "wiki.imatrix");
        assert_eq!(rows(&Provenance::of(&metadata)), [("Made by", "importance wiki.imatrix".to_string())]);
    }
}
