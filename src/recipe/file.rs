//! Reads recipe files.

use serde::Deserialize;
use serde::de::{self, Deserializer};
use toml::Spanned;

use super::rule::{Layers, Rule, roles};
use super::{Error, Recipe};
use crate::arch::Role;
use crate::gguf::TensorType;
use crate::quant;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    #[serde(deserialize_with = "words")]
    name: String,
    #[serde(deserialize_with = "words")]
    description: String,
    base: Option<Spanned<String>>,
    #[serde(rename = "type")]
    ty: Option<TypeName>,
    file_type: Option<u32>,
    #[serde(default, rename = "rule")]
    rules: Vec<RuleTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    #[serde(deserialize_with = "roles")]
    role: Vec<Role>,
    layers: Option<Layers>,
    importance: Option<bool>,
    tied: Option<bool>,
    min_gqa: Option<u64>,
    model_layers: Option<u32>,
    #[serde(rename = "type")]
    ty: TypeName,
    #[serde(deserialize_with = "words")]
    why: String,
}

impl From<RuleTable> for Rule {
    fn from(table: RuleTable) -> Self {
        let RuleTable { role: roles, layers, importance, tied, min_gqa, model_layers, ty: TypeName(ty), why } = table;
        Self { roles, layers, importance, tied, min_gqa, model_layers, ty, why }
    }
}

/// Reads a recipe.
///
/// `base` finds the recipe that this one is based on. `file_type` returns the file type for a predominant type.
pub(super) fn read<'a>(
    text: &str,
    file_name: &str,
    base: impl Fn(&str) -> Option<&'a Recipe>,
    file_type: impl Fn(TensorType) -> Option<u32>,
) -> Result<Recipe, Error> {
    let line_at = |at: usize| {
        let before = text.as_bytes().get(..at).unwrap_or_default();
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    };
    let error_at = |at: Option<usize>, message: String| {
        let line = line_at(at.unwrap_or(0));
        // The TOML parser's message may take several lines.
        Error::Parse { file: file_name.to_string(), line, message: message.trim_end().replace('\n', "; ") }
    };
    let file: RecipeFile =
        toml::from_str(text).map_err(|e| error_at(e.span().map(|span| span.start), e.message().to_string()))?;

    let base = match &file.base {
        None => None,
        Some(name) => Some(base(name.get_ref()).ok_or_else(|| Error::UnknownBase {
            file: file_name.to_string(),
            line: line_at(name.span().start),
            name: name.get_ref().clone(),
        })?),
    };
    let ty = file.ty.map(|ty| ty.0);
    let default_type = ty.or(base.map(|base| base.ty)).ok_or_else(|| {
        error_at(None, "missing 'type', which tensors get that no rule chooses, or a 'base' that has one".to_string())
    })?;
    let file_type = match (file.file_type, ty, base) {
        (Some(file_type), _, _) => Some(file_type),
        (None, None, Some(base)) => Some(base.file_type),
        (None, _, _) => file_type(default_type),
    };
    let file_type = file_type.ok_or_else(|| error_at(None, format!("missing 'file_type' for {default_type}")))?;

    let mut rules: Vec<Rule> = file.rules.into_iter().map(Rule::from).collect();
    rules.extend(base.into_iter().flat_map(|base| base.rules.iter().cloned()));
    let text_hash = blake3::hash(text.as_bytes());
    Ok(Recipe { name: file.name, description: file.description, file_type, ty: default_type, rules, text_hash })
}

/// The name of a type that a recipe may use.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TypeName(pub TensorType);

impl<'de> Deserialize<'de> for TypeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.parse() {
            Ok(ty) if quant::format(ty).is_some() => Ok(Self(ty)),
            _ => Err(de::Error::custom(format_args!("unknown type '{name}'; known are {}", quant::type_list()))),
        }
    }
}

/// Reads a text that is not empty.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(de::Error::invalid_length(0, &"some words"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name = \"MINE\"\ndescription = \"a test\"\n";

    fn error(rest: &str) -> String {
        Recipe::from_toml(&format!("{HEAD}{rest}"), "my.toml").unwrap_err().to_string()
    }

    #[test]
    fn reads_a_recipe_of_the_users_own() {
        let text = format!(
            "{HEAD}type = \"Q4_K\"\n[[rule]]\nrole = [\"ffn_down\", \"output\"]\nlayers = [0, \"first_eighth\", \
             \"56..\"]\nimportance = true\ntype = \"q6_k\"\nwhy = \"a test\"\n"
        );
        let recipe = Recipe::from_toml(&text, "my.toml").unwrap();
        assert_eq!((recipe.name.as_str(), recipe.ty, recipe.rules.len()), ("MINE", TensorType::Q4_K, 1));
        assert_eq!(recipe.file_type, 14, "as the plainest recipe of that type, Q4_K_S");
        let rule = &recipe.rules[0];
        assert_eq!(rule.roles, [Role::FfnDown, Role::Output]);
        assert_eq!(rule.conditions(), "layer 0 and first eighth of the layers and layers from 56, with importance");
    }

    #[test]
    fn rules_come_before_those_of_the_base() {
        let text = format!(
            "{HEAD}base = \"q4_k_m\"\n[[rule]]\nrole = \"output\"\ntype = \"q8_0\"\nwhy = \"more for the output\"\n"
        );
        let recipe = Recipe::from_toml(&text, "my.toml").unwrap();
        let base = Recipe::builtin("Q4_K_M").unwrap();
        assert_eq!((recipe.ty, recipe.file_type), (base.ty, base.file_type));
        assert_eq!(recipe.rules[0].ty, TensorType::Q8_0);
        assert_eq!(recipe.rules[1..], base.rules);
        let text = format!("{HEAD}base = \"q4_k_m\"\ntype = \"q5_k\"\n");
        let recipe = Recipe::from_toml(&text, "my.toml").unwrap();
        assert_eq!((recipe.ty, recipe.file_type), (TensorType::Q5_K, 16));
    }

    #[test]
    fn refuses_unknown_keys_with_the_line_and_what_is_known() {
        let message = error("type = \"q4_k\"\n[[rule]]\nrole = \"output\"\nlayer = 3\ntype = \"q6_k\"\nwhy = \"x\"\n");
        assert!(message.starts_with("my.toml:6: ") && message.contains("`layer`"), "{message}");
        assert!(message.contains("`layers`") && message.contains("`min_gqa`"), "{message}");
        let message = error("typ = \"q4_k\"\n");
        assert!(message.starts_with("my.toml:3: ") && message.contains("`file_type`"), "{message}");
    }

    #[test]
    fn refuses_values_that_mean_nothing_with_the_line() {
        let rule = |line: &str| error(&format!("type = \"q4_k\"\n[[rule]]\nwhy = \"x\"\ntype = \"q6_k\"\n{line}\n"));
        for (message, words) in [
            (error("type = \"q9_k\"\n"), "my.toml:3: unknown type 'q9_k'; known are F32,"),
            (error("type = \"i32\"\n"), "my.toml:3: unknown type 'i32'"),
            (error("base = \"Q9\"\n"), "my.toml:3: there is no recipe 'Q9'"),
            (error(""), "my.toml:1: missing 'type'"),
            (rule("role = \"norm\""), "my.toml:7: unknown role 'norm'; known are token_embedding,"),
            (rule("role = [\"output\", \"ffn\"]"), "my.toml:7: unknown role 'ffn'"),
            (rule("role = []"), "my.toml:7: invalid length 0"),
            (rule("role = 3"), "my.toml:7: invalid type: integer `3`"),
            (rule("role = \"output\"\nlayers = \"4..4\""), "my.toml:8: unknown layers '4..4'; known are"),
            (rule("role = \"output\"\nlayers = -1"), "my.toml:8: -1 is not a layer"),
            (rule("role = \"output\"\nlayers = 1.5"), "my.toml:8: invalid type: floating point `1.5`"),
            (rule("role = \"output\"\nmin_gqa = -4"), "my.toml:8: invalid value: integer `-4`"),
            (rule(""), "missing field `role`"),
        ] {
            assert!(message.contains(words), "{message}");
        }
        let message = error("type = \"q4_k\"\n[[rule]]\nrole = \"output\"\ntype = \"q6_k\"\nwhy = \" \"\n");
        assert!(message.starts_with("my.toml:7: "), "{message}");
        let message = error("type = \"q4_k\"\n[[rule]]\nrole = \"output\"\ntype = \"q6_k\"\n");
        assert!(message.starts_with("my.toml:4: missing field `why`"), "{message}");
        let message = error("type = \n");
        assert!(message.starts_with("my.toml:3: ") && !message.contains('\n'), "{message}");
    }
}
