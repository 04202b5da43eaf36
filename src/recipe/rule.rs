//! Rules of recipes: which tensors they match, and which type they choose.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::plan::type_name;
use crate::arch::{Role, Topology};
use crate::gguf::TensorType;

/// Chooses a type for the tensors that meet all of its conditions.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rule {
    /// The roles that it matches.
    pub roles: Vec<Role>,
    /// The layers that it matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Whether importance is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance: Option<bool>,
    /// Whether the model lacks an output matrix and uses its token embedding instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
    /// At least this many query heads share a key and value head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_gqa: Option<u64>,
    /// The model has exactly this many layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_layers: Option<u32>,
    /// The type that it chooses.
    #[serde(rename = "type", serialize_with = "type_name")]
    pub ty: TensorType,
    /// The reason, for people.
    pub why: String,
}

/// The properties that rules depend on, apart from the tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    pub topology: Topology,
    pub tied: bool,
    pub importance: bool,
}

impl Rule {
    /// Returns whether it matches a tensor with this role in this layer.
    pub(super) fn matches(&self, role: Role, layer: Option<u32>, at: &Circumstances) -> bool {
        let in_layers = |layers: &Layers| layer.is_some_and(|layer| layers.contain(layer, at.topology.n_layers));
        self.roles.contains(&role)
            && self.layers.as_ref().is_none_or(in_layers)
            && self.importance.is_none_or(|importance| importance == at.importance)
            && self.tied.is_none_or(|tied| tied == at.tied)
            && self.min_gqa.is_none_or(|min| at.topology.gqa() >= min)
            && self.model_layers.is_none_or(|n| at.topology.n_layers == n)
    }

    /// Returns the names of its roles, as in files: `attention_v`.
    pub fn role_names(&self) -> Vec<&'static str> {
        self.roles.iter().map(|role| role.name()).collect()
    }

    /// Returns its conditions beyond the role in words, such as `layers 0 to 3, with importance`; empty if there are none.
    pub fn conditions(&self) -> String {
        let mut words = Vec::new();
        if let Some(layers) = &self.layers {
            words.push(layers.words());
        }
        if let Some(n) = self.model_layers {
            words.push(format!("models of {n} layers"));
        }
        if let Some(n) = self.min_gqa {
            words.push(format!("{n} or more query heads for each value head"));
        }
        if let Some(tied) = self.tied {
            words.push(if tied { "tied embeddings" } else { "an output matrix of its own" }.to_string());
        }
        if let Some(given) = self.importance {
            words.push(if given { "with importance" } else { "without importance" }.to_string());
        }
        words.join(", ")
    }
}

/// Returns the roles that rules and overrides may name. Tensors of the others stay F32.
pub(super) fn roles_with_choice() -> impl Iterator<Item = Role> {
    Role::ALL.iter().copied().filter(|role| role.has_choice())
}

/// Returns the role with this name, where rules and overrides may name it.
pub(super) fn role_named(name: &str) -> Option<Role> {
    roles_with_choice().find(|role| role.name() == name)
}

/// Returns the names of [`roles_with_choice`], for messages.
pub(super) fn role_list() -> String {
    roles_with_choice().map(Role::name).collect::<Vec<_>>().join(", ")
}

/// Layers by their position in the model: the union of some sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(Vec<LayerSet>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LayerSet {
    FirstSixteenth,
    FirstEighth,
    /// The first eighth, the last eighth, and every third layer between.
    MoreBits,
    /// From the first to before the second, or to the end if there is no second.
    Range(u32, Option<u32>),
}

impl Layers {
    /// Returns whether `layer`, counted from 0, is one of these in a model of `n_layers`.
    pub fn contain(&self, layer: u32, n_layers: u32) -> bool {
        let (i, n) = (u64::from(layer), u64::from(n_layers));
        self.0.iter().any(|part| match *part {
            LayerSet::FirstSixteenth => i < n / 16,
            LayerSet::FirstEighth => i < n / 8,
            // The divisions round down, as in llama.cpp's `use_more_bits`.
            LayerSet::MoreBits => i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2,
            LayerSet::Range(from, to) => layer >= from && to.is_none_or(|to| layer < to),
        })
    }

    /// As people read it: `first eighth of the layers`.
    fn words(&self) -> String {
        let words = |part: &LayerSet| match *part {
            LayerSet::FirstSixteenth => "first sixteenth of the layers".to_string(),
            LayerSet::FirstEighth => "first eighth of the layers".to_string(),
            LayerSet::MoreBits => "first and last eighth of the layers and every third between".to_string(),
            LayerSet::Range(from, None) => format!("layers from {from}"),
            LayerSet::Range(from, Some(to)) if to - from == 1 => format!("layer {from}"),
            LayerSet::Range(from, Some(to)) => format!("layers {from} to {}", to - 1),
        };
        self.0.iter().map(words).collect::<Vec<_>>().join(" and ")
    }
}

impl LayerSet {
    const KNOWN: &str = "first_sixteenth, first_eighth, more_bits, a range such as \"0..4\" (0 to 3) or \"56..\", \
                         a number, or a list of these";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "first_sixteenth" => return Some(Self::FirstSixteenth),
            "first_eighth" => return Some(Self::FirstEighth),
            "more_bits" => return Some(Self::MoreBits),
            _ => {}
        }
        let (from, to) = text.split_once("..")?;
        let from = if from.is_empty() { 0 } else { from.parse().ok()? };
        let to = if to.is_empty() { None } else { Some(to.parse().ok()?) };
        to.is_none_or(|to| from < to).then_some(Self::Range(from, to))
    }
}

impl fmt::Display for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::FirstSixteenth => f.write_str("first_sixteenth"),
            Self::FirstEighth => f.write_str("first_eighth"),
            Self::MoreBits => f.write_str("more_bits"),
            Self::Range(from, None) => write!(f, "{from}.."),
            Self::Range(from, Some(to)) if from.checked_add(1) == Some(to) => write!(f, "{from}"),
            Self::Range(from, Some(to)) => write!(f, "{from}..{to}"),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            write!(f, "{}{part}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl serde::Serialize for Layers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PartVisitor;
        impl Visitor<'_> for PartVisitor {
            type Value = LayerSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(LayerSet::KNOWN)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LayerSet, E> {
                LayerSet::parse(text)
                    .ok_or_else(|| E::custom(format_args!("unknown layers '{text}'; known are {}", LayerSet::KNOWN)))
            }

            fn visit_i64<E: de::Error>(self, layer: i64) -> Result<LayerSet, E> {
                match u32::try_from(layer) {
                    Ok(layer) if layer < u32::MAX => Ok(LayerSet::Range(layer, Some(layer + 1))),
                    _ => Err(E::custom(format_args!("{layer} is not a layer; layers are counted from 0"))),
                }
            }
        }
        deserializer.deserialize_any(PartVisitor)
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_or_many(deserializer, LayerSet::KNOWN).map(Self)
    }
}

/// A role that a rule may name.
struct RuleRole(Role);

impl<'de> Deserialize<'de> for RuleRole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        role_named(&name).map(Self).ok_or_else(|| {
            de::Error::custom(format_args!(
                "unknown role '{name}'; known are {} (norms, biases and vectors stay F32)",
                role_list()
            ))
        })
    }
}

/// Reads a rule's `role`: a name or a list of names.
pub(super) fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Role>, D::Error> {
    let roles: Vec<RuleRole> = one_or_many(deserializer, "a role, or a list of roles")?;
    Ok(roles.into_iter().map(|role| role.0).collect())
}

/// Reads a `T`, or a list of at least one. (An untagged enum would lose the message about what is wrong inside.)
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    expecting: &'static str,
) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(&'static str, std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            T::deserialize(de::value::StrDeserializer::new(text)).map(|one| vec![one])
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<T>, E> {
            T::deserialize(de::value::I64Deserializer::new(number)).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut many = Vec::new();
            while let Some(one) = seq.next_element()? {
                many.push(one);
            }
            if many.is_empty() {
                return Err(de::Error::invalid_length(0, &self));
            }
            Ok(many)
        }
    }
    deserializer.deserialize_any(OneOrMany(expecting, std::marker::PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str, n_layers: u32) -> Vec<u32> {
        let layers = Layers(vec![LayerSet::parse(text).unwrap()]);
        (0..n_layers).filter(|&layer| layers.contain(layer, n_layers)).collect()
    }

    #[test]
    fn parts_of_a_model_round_down() {
        assert!(layers("first_eighth", 7).is_empty());
        assert_eq!(layers("first_eighth", 15), [0]);
        assert_eq!(layers("first_eighth", 60), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(layers("first_sixteenth", 60), [0, 1, 2]);
        assert_eq!(layers("more_bits", 4), [2, 3]);
        assert_eq!(layers("more_bits", 16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(layers("1..3", 16), [1, 2]);
        assert_eq!(layers("14..", 16), [14, 15]);
        assert_eq!(layers("..2", 16), [0, 1]);
    }

    #[test]
    fn refuses_ranges_that_hold_no_layer_or_are_no_range() {
        for text in ["4..4", "4..1", "0-4", "first_half", "-1..2", "1...2", "99999999999.."] {
            assert_eq!(LayerSet::parse(text), None, "{text}");
        }
    }

    #[test]
    fn layers_read_as_they_are_written() {
        for text in ["first_sixteenth", "first_eighth", "more_bits", "0..4", "56.."] {
            assert_eq!(LayerSet::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(LayerSet::Range(7, Some(8)).to_string(), "7");
    }
}
