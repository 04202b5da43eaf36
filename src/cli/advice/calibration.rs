//! What to type when something goes wrong with importance files, or with making them.

use std::error::Error;

use crate::calibration::importance::{self, Problem};
use crate::convert;
#[cfg(feature = "llama")]
use crate::evaluate::calibrate;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    #[cfg(feature = "llama")]
    if let Some(error) = cause.downcast_ref() {
        return of_calibration(error).map(str::to_string);
    }
    if let Some(convert::Error::ImportanceRequired(_)) = cause.downcast_ref() {
        return Some("give it with --importance; 'nibble calibrate' makes it".to_string());
    }
    of_file(cause.downcast_ref()?).map(str::to_string)
}

fn of_file(error: &importance::Error) -> Option<&'static str> {
    let importance::Error::File { problem, .. } = error else { return None };
    match problem {
        Problem::NotImportance => Some("'nibble calibrate' and llama-imatrix make such files"),
        Problem::OtherGguf { .. } => Some("'nibble calibrate' makes one from a model and some texts"),
        _ => None,
    }
}

#[cfg(feature = "llama")]
fn of_calibration(error: &calibrate::Error) -> Option<&'static str> {
    match error {
        calibrate::Error::Importance(error) => of_file(error),
        calibrate::Error::Nothing => Some("name texts to read, or files to add with --merge"),
        calibrate::Error::TextIsGguf { .. } => Some("the model comes first: nibble calibrate MODEL TEXT..."),
        calibrate::Error::Short { .. } => Some("give more text, or a smaller --window"),
        calibrate::Error::Window { .. } => Some("give --window a number in this range"),
        calibrate::Error::NotFinite { .. } => Some("'nibble verify' checks the file"),
        calibrate::Error::OutputExists { .. } => Some("pass --force to replace it, or -o to write elsewhere"),
        calibrate::Error::OutputIsFolder { .. } => Some("give -o the name of a file"),
        calibrate::Error::OutputIsInput { .. } => Some("give -o another name"),
        calibrate::Error::UnknownPartial { .. } => Some("remove it, or pass --restart"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_to_make_what_is_missing() {
        let of = |problem| advice(&importance::Error::File { path: "x".into(), problem });
        let said = of(Problem::OtherGguf { found: "model".to_string() }).unwrap();
        assert!(said.contains("nibble calibrate"), "{said}");
        assert!(of(Problem::NotImportance).unwrap().contains("llama-imatrix"));
        assert_eq!(of(Problem::Split), None);
    }

    #[cfg(feature = "llama")]
    #[test]
    fn looks_through_the_error_of_a_calibration() {
        let inner = importance::Error::File { path: "x".into(), problem: Problem::NotImportance };
        assert!(advice(&calibrate::Error::Importance(inner)).unwrap().contains("nibble calibrate"));
        let short = calibrate::Error::Short { path: "x".into(), tokens: 5, window: 512 };
        assert!(advice(&short).unwrap().contains("--window"));
    }
}
