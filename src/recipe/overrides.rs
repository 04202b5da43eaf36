//! Overrides, `PATTERN=TYPE`: a type for some tensors, whatever the recipe says.

use std::fmt;
use std::str::FromStr;

use super::Error;
use super::rule::role_named;
use crate::arch::Role;
use crate::gguf::TensorType;
use crate::quant;

/// A type for some tensors, whatever the recipe says. If several match a tensor, the first decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The pattern as the user wrote it.
    pub pattern: String,
    /// The type that it asks for.
    pub ty: TensorType,
}

impl Override {
    /// Returns whether it matches the tensor: by its name, its role, or a name in which `*` stands for any letters.
    pub fn matches(&self, name: &str, role: Role) -> bool {
        match role_named(&self.pattern) {
            Some(wanted) => role == wanted,
            None => glob(self.pattern.as_bytes(), name.as_bytes()),
        }
    }
}

impl FromStr for Override {
    type Err = Error;

    /// Parses `PATTERN=TYPE`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (pattern, ty) = text
            .rsplit_once('=')
            .map(|(pattern, ty)| (pattern.trim(), ty.trim()))
            .filter(|(pattern, ty)| !pattern.is_empty() && !ty.is_empty())
            .ok_or_else(|| Error::OverrideSyntax { text: text.to_string() })?;
        match ty.parse() {
            Ok(known) if quant::format(known).is_some() => Ok(Self { pattern: pattern.to_string(), ty: known }),
            _ => Err(Error::OverrideType { text: text.to_string(), ty: ty.to_string() }),
        }
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.ty)
    }
}

/// Returns whether `*` of the pattern can stand for letters so that it becomes `name`. Takes at most their product in
/// steps.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // The place of the last star, and how much of the name it leaves to what follows it.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(letter) if *letter == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_letters_and_none() {
        for (pattern, name, matches) in [
            ("*", "", true),
            ("*", "output.weight", true),
            ("", "", true),
            ("", "a", false),
            ("blk.1.*", "blk.1.attn_q.weight", true),
            ("blk.1.*", "blk.11.attn_q.weight", false),
            ("blk.*.attn_q.weight", "blk.11.attn_q.weight", true),
            ("*attn*weight", "blk.0.attn_q.weight", true),
            ("*attn*weight", "blk.0.attn_q.weights", false),
            ("a*ab", "aab", true),
            ("a*ab", "ab", false),
            ("a*b*c", "abbbcbc", true),
            ("**", "x", true),
            ("output", "output.weight", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_longer_than_its_length_times_the_names() {
        let name = [b'a'; 4000];
        let pattern = [b"*a".repeat(500).as_slice(), b"b"].concat();
        assert!(!glob(&pattern, &name));
    }

    #[test]
    fn reads_what_is_typed() {
        let over: Override = "ffn_down=q6_k".parse().unwrap();
        assert_eq!((over.pattern.as_str(), over.ty), ("ffn_down", TensorType::Q6_K));
        assert!(over.matches("blk.3.ffn_down.weight", Role::FfnDown));
        assert!(!over.matches("blk.3.ffn_up.weight", Role::FfnUp));
    }

    #[test]
    fn refuses_what_is_no_pattern_and_type() {
        let message = |text: &str| text.parse::<Override>().unwrap_err().to_string();
        for text in ["", "ffn_down", "=Q4_K", "ffn_down=", " = "] {
            assert!(message(text).contains("is not PATTERN=TYPE"), "{text}");
        }
        assert!(message("ffn_down=Q9_K").contains("Q9_K is not a type for weights; known are F32,"));
        assert!(message("ffn_down=I32").contains("I32 is not a type for weights"));
        assert!(message("ffn_down=IQ2_XXS").contains("IQ2_XXS is not a type for weights"));
    }
}
