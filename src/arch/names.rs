//! Names of a checkpoint that differ from an architecture's only in what stands before them, and tensors that belong to no
//! model.
//!
//! ```text
//! model.layers.0.mlp.up_proj.weight                     as the architectures of this room name it
//! _orig_mod.model.layers.0.mlp.up_proj.weight           torch.compile
//! module.model.layers.0.mlp.up_proj.weight              DistributedDataParallel
//! base_model.model.model.layers.0.mlp.up_proj.weight    PEFT
//! pretrained_model.model.layers.0.mlp.up_proj.weight    TRL, beside a value head
//! model.language_model.layers.0.mlp.up_proj.weight      the text part of a model that sees
//! layers.0.mlp.up_proj.weight                           LlamaModel, without its output matrix
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

/// What every name begins with but that of the output matrix.
const TRUNK: &str = "model.";

/// The output matrix.
const HEAD: &str = "lm_head";

/// What stands before the names of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// This, before the names of layers, in the place of `model.`.
    Trunk(String),
    /// This, before whole names. It can be told so where there are no layers, as in adapters of the output matrix alone.
    Whole(String),
}

impl Prefix {
    /// Finds what most names of layers begin with, or without layers, all names; `None` where that is `model.`, as it should
    /// be, or nothing can be said.
    /// `is_known` returns whether an architecture has this name.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>, is_known: impl Fn(&str) -> bool) -> Option<Self> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let names: Vec<&str> = names.into_iter().collect();
        for name in &names {
            let layers = name.match_indices("layers.").map(|(at, _)| at);
            let mut begins = layers.filter(|&at| at == 0 || name[..at].ends_with('.'));
            if let Some(at) = begins.find(|&at| is_known(&format!("{TRUNK}{}", &name[at..]))) {
                *counts.entry(&name[..at]).or_default() += 1;
            }
        }
        let Some(most) = counts.values().max() else { return Self::of_all(&names, is_known) };
        // A part that sees images has layers too, and fewer matrices in each.
        let mut first = counts.iter().filter(|(_, count)| *count == most).map(|(prefix, _)| *prefix);
        match (first.next(), first.next()) {
            (Some(prefix), None) if !counts.contains_key(TRUNK) => Some(Self::Trunk(prefix.to_string())),
            _ => None,
        }
    }

    /// Finds what stands before all names, which are of no layers.
    fn of_all(names: &[&str], is_known: impl Fn(&str) -> bool) -> Option<Self> {
        let before = |name: &str| {
            let mut ends = name.match_indices('.').map(|(at, _)| at + 1);
            if is_known(name) { None } else { ends.find(|&at| is_known(&name[at..])).map(|at| name[..at].to_string()) }
        };
        let mut found = names.iter().map(|name| before(name));
        let first = found.next()??;
        found.all(|other| other.as_ref() == Some(&first)).then_some(Self::Whole(first))
    }

    fn text(&self) -> &str {
        match self {
            Self::Trunk(text) | Self::Whole(text) => text,
        }
    }

    /// Returns the architecture's name for what the checkpoint calls `name`.
    pub fn strip<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let prefix = match self {
            Self::Whole(prefix) => return Cow::Borrowed(name.strip_prefix(prefix.as_str()).unwrap_or(name)),
            Self::Trunk(prefix) => prefix,
        };
        let head = name.match_indices(HEAD).map(|(at, _)| at).find(|&at| {
            let ends = name[at + HEAD.len()..].is_empty() || name[at + HEAD.len()..].starts_with('.');
            // `model.language_model.` stands before layers, and perhaps only a part of it before the output matrix.
            ends && prefix.starts_with(&name[..at]) && (at == 0 || name[..at].ends_with('.'))
        });
        match (head, name.strip_prefix(prefix.as_str())) {
            (Some(at), _) => Cow::Borrowed(&name[at..]),
            (None, Some(rest)) => Cow::Owned(format!("{TRUNK}{rest}")),
            (None, None) => Cow::Borrowed(name),
        }
    }

    /// Returns a sentence that says what is done about it.
    pub fn warning(&self) -> String {
        let by = |by| format!(" ({by})");
        let by = match self.text() {
            prefix if prefix.contains("_orig_mod.") => by("torch.compile"),
            prefix if prefix.starts_with("module.") => by("DistributedDataParallel"),
            prefix if prefix.contains("_fsdp_wrapped_module.") => by("FSDP"),
            prefix if prefix.starts_with("base_model.model.") => by("PEFT"),
            prefix if prefix.contains("language_model.") => by("the text part of a larger model"),
            _ => String::new(),
        };
        let shown = crate::base::display::shorten(self.text(), 60);
        match self {
            Self::Whole(_) => {
                format!("the names of the tensors begin with '{shown}'{by}; they are read as if they did not")
            }
            Self::Trunk(prefix) if prefix.is_empty() => {
                format!("the names of the tensors lack '{TRUNK}' at their beginning; they are read as if they had it")
            }
            Self::Trunk(_) => {
                format!("the names of the tensors begin with '{shown}'{by}; they are read as if it were '{TRUNK}'")
            }
        }
    }
}

/// Returns whether a model that writes text does without this tensor, whatever its architecture: heads that judge or guess
/// ahead, and scales of a cache of keys and values.
///
/// Sources: `AutoModelForCausalLMWithValueHead` of TRL, `LlamaForSequenceClassification` of transformers, Medusa, and the
/// `kv_cache_scheme` of compressed-tensors.
pub(super) fn is_spare(name: &str) -> bool {
    const HEADS: [&str; 7] =
        ["v_head", "value_head", "reward_head", "critic_head", "score", "classifier", "medusa_head"];
    const SCALES: [&str; 5] = [
        ".self_attn.q_scale",
        ".self_attn.k_scale",
        ".self_attn.v_scale",
        ".k_proj.output_scale",
        ".v_proj.output_scale",
    ];
    // Behind a wrapper's prefix too, but not in a layer.
    let is_head = !name.contains("layers.") && name.split('.').any(|part| HEADS.contains(&part));
    is_head || SCALES.iter().any(|scale| name.ends_with(scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> bool {
        ["q_proj", "up_proj"].iter().any(|end| name.ends_with(&format!("{end}.weight")))
            && name.starts_with("model.layers.")
    }

    #[test]
    fn what_stands_before_the_layers_is_found_and_taken_away() {
        for (prefix, head) in [
            ("_orig_mod.model.", "_orig_mod."),
            ("module.model.", "module."),
            ("base_model.model.model.", "base_model.model."),
            ("model.language_model.", ""),
            ("language_model.model.", "language_model."),
            ("model.model.", "model."),
            ("", ""),
        ] {
            let name = |rest: &str| format!("{prefix}{rest}");
            let names = [name("layers.0.mlp.up_proj.weight"), name("layers.11.self_attn.q_proj.weight")];
            let found = Prefix::of(names.iter().map(String::as_str), known).unwrap();
            assert_eq!(found, Prefix::Trunk(prefix.to_string()));
            assert_eq!(found.strip(&names[1]), "model.layers.11.self_attn.q_proj.weight");
            assert_eq!(found.strip(&name("embed_tokens.weight")), "model.embed_tokens.weight");
            assert_eq!(found.strip(&format!("{head}lm_head.weight")), "lm_head.weight");
            assert_eq!(found.strip(&format!("{head}lm_head")), "lm_head");
            assert_ne!(found.strip("my_lm_head.weight"), "lm_head.weight");
        }
    }

    #[test]
    fn what_stands_before_all_names_is_found_where_there_are_no_layers() {
        let known = |name: &str| ["lm_head", "model.embed_tokens"].contains(&name);
        for prefix in ["_orig_mod.", "module.", "language_model.", "a.b."] {
            for names in [vec!["lm_head", "lm_head"], vec!["model.embed_tokens"], vec!["model.embed_tokens", "lm_head"]]
            {
                let names: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
                let found = Prefix::of(names.iter().map(String::as_str), known).unwrap();
                assert_eq!(found, Prefix::Whole(prefix.to_string()));
                assert!(names.iter().all(|name| known(&found.strip(name))), "{names:?}");
                let wanted = format!("begin with '{prefix}'");
                assert!(found.warning().contains(&wanted) && found.warning().ends_with("read as if they did not"));
            }
        }
        for names in [&["lm_head"][..], &["x.lm_head", "lm_head"], &["x.lm_head", "y.lm_head"], &["my_lm_head"], &[]] {
            assert_eq!(Prefix::of(names.iter().copied(), known), None, "{names:?}");
        }
    }

    #[test]
    fn names_as_they_should_be_have_nothing_taken_away() {
        let name = "model.layers.0.mlp.up_proj.weight";
        assert_eq!(Prefix::of([name], known), None);
        assert_eq!(
            Prefix::of([name, "ema.layers.0.mlp.up_proj.weight", "ema.layers.1.mlp.up_proj.weight"], known),
            None
        );
        assert_eq!(Prefix::of(["a.layers.0.mlp.up_proj.weight", "b.layers.0.mlp.up_proj.weight"], known), None);
        assert_eq!(Prefix::of(["transformer.h.0.mlp.up_proj.weight"], known), None);
        assert_eq!(Prefix::of(["xlayers.0.mlp.up_proj.weight"], known), None);
        // The part that sees has fewer of the names.
        let seeing = ["vision.layers.0.self_attn.q_proj.weight"];
        let text = ["text.layers.0.self_attn.q_proj.weight", "text.layers.0.mlp.up_proj.weight"];
        assert_eq!(Prefix::of(seeing.into_iter().chain(text), known), Some(Prefix::Trunk("text.".to_string())));
    }
}
