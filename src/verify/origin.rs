//! Compares a file with its source in everything but the tensors' bytes: which tensors there are, their types, the
//! metadata, the source's files.

use std::collections::{HashMap, HashSet};

use super::report::{Hashes, KeyDifference, OriginReport, OtherType, SourceFile};
use super::{Against, Provenance};
use crate::gguf::{Gguf, Metadata, Value};
use crate::recipe::{self, Override, Recipe};

impl Against {
    /// Compares everything but the tensors' bytes. `recipe` is the recorded recipe, if it is a built-in one and unchanged.
    pub fn compare(&self, gguf: &Gguf, provenance: &Provenance, recipe: Option<&Recipe>) -> OriginReport {
        let mut report = OriginReport {
            missing: self
                .source
                .tensors
                .iter()
                .filter(|tensor| gguf.tensor(&tensor.name).is_none())
                .map(|tensor| tensor.name.clone())
                .collect(),
            ..OriginReport::default()
        };
        if let Some(recipe) = recipe {
            match self.other_types(gguf, provenance, recipe) {
                Ok(types) => report.types = types,
                Err(error) => report.recipe_problem = Some(error.to_string()),
            }
        }
        self.compare_metadata(gguf.metadata(), provenance, recipe, &mut report);
        report
    }

    /// Returns the tensors whose type is not the one that the recipe and the recorded overrides choose.
    fn other_types(
        &self,
        gguf: &Gguf,
        provenance: &Provenance,
        recipe: &Recipe,
    ) -> Result<Vec<OtherType>, recipe::Error> {
        let overrides =
            provenance.overrides.iter().map(|text| text.parse()).collect::<Result<Vec<Override>, recipe::Error>>()?;
        let (topology, tensors) = (&self.source.topology, &self.source.tensors);
        let plan = recipe::plan(recipe, topology, tensors, provenance.used_importance, &overrides)?;
        let other = |planned: &recipe::PlannedTensor| {
            let found = gguf.tensor(&planned.name)?.ty;
            (found != planned.ty).then(|| OtherType { tensor: planned.name.clone(), found, wanted: planned.ty })
        };
        Ok(plan.tensors.iter().filter_map(other).collect())
    }

    /// Compares the keys that describe the model. Keys about the conversion are compared elsewhere, if that is
    /// possible.
    fn compare_metadata(
        &self,
        found: &Metadata,
        provenance: &Provenance,
        recipe: Option<&Recipe>,
        report: &mut OriginReport,
    ) {
        let mut wanted = self.source.metadata.clone();
        wanted.set("general.quantization_version", recipe::QUANTIZATION_VERSION);
        match recipe {
            Some(recipe) => wanted.set("general.file_type", recipe.file_type),
            // Without a recipe nothing says which number it should be.
            None => drop(wanted.remove("general.file_type")),
        }
        let is_compared = |key: &str| match key {
            "general.file_type" => recipe.is_some(),
            // About this file, not about the model.
            "general.alignment" => false,
            _ => !key.starts_with("split.") && !Provenance::has_key(key),
        };
        // A hostile file may have a million keys, which must not cost a million linear searches.
        let found_by_key: HashMap<&str, &Value> = found.iter().collect();
        let wanted_keys: HashSet<&str> = wanted.iter().map(|(key, _)| key).collect();
        for (key, value) in wanted.iter().filter(|(key, _)| is_compared(key)) {
            let in_file = found_by_key.get(key).copied();
            if in_file == Some(value) {
                continue;
            }
            // The folder's name is not part of what was converted.
            if let (Some(name), Some(was)) = (in_file.and_then(Value::as_str), &provenance.source)
                && (key, name, value.as_str()) == ("general.name", was, Some(self.source.name.as_str()))
            {
                report.renamed_from = Some(was.clone());
                continue;
            }
            report.metadata.push(difference(key, in_file, Some(value)));
        }
        for (key, value) in found.iter().filter(|(key, _)| is_compared(key) && !wanted_keys.contains(key)) {
            report.metadata.push(difference(key, Some(value), None));
        }
    }

    /// Compares the source's files with the recorded ones. `hashes` are their hashes, in order, if all of them were read.
    pub fn compare_files(&self, provenance: &Provenance, hashes: Option<&[String]>, report: &mut OriginReport) {
        if provenance.source_files.is_empty() && provenance.source_blake3.is_empty() {
            return;
        }
        report.hashes = if hashes.is_some() { Hashes::Compared } else { Hashes::Sampled };
        let recorded = |i: usize| provenance.source_blake3.get(i).cloned();
        let number: HashMap<&str, usize> =
            provenance.source_files.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let names = self.source.file_names();
        for (i, name) in names.iter().enumerate() {
            let recorded = number.get(name.as_str()).and_then(|&i| recorded(i));
            let found = hashes.and_then(|hashes| hashes.get(i).cloned());
            report.files.push(SourceFile { name: name.clone(), recorded, found, exists: true });
        }
        for (i, name) in provenance.source_files.iter().enumerate() {
            if !names.contains(name) {
                let (name, recorded) = (name.clone(), recorded(i));
                report.files.push(SourceFile { name, recorded, found: None, exists: false });
            }
        }
    }
}

fn difference(key: &str, found: Option<&Value>, wanted: Option<&Value>) -> KeyDifference {
    KeyDifference { key: key.to_string(), found: found.cloned(), wanted: wanted.cloned() }
}
