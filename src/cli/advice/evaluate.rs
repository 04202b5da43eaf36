//! What to type when something goes wrong with comparisons, texts, tasks and traces.

use std::error::Error;

use crate::evaluate::tasks::{self, KeptError};
use crate::evaluate::{self, layerwise, polish, rounding, texts, trace};

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<evaluate::Error>() {
        return of_comparison(error);
    }
    if let Some(error) = cause.downcast_ref::<texts::Error>() {
        return match error {
            texts::Error::Short { .. } => Some("give a longer text, or a smaller --window".into()),
            texts::Error::SameName(name) => Some(format!("give them names, as in --text {name}-2=FILE")),
            _ => None,
        };
    }
    if let Some(error) = cause.downcast_ref() {
        return of_rounding(error);
    }
    if let Some(layerwise::Error::Texts(error)) = cause.downcast_ref() {
        return of_rounding(error);
    }
    match cause.downcast_ref() {
        Some(polish::Error::Rounding(error)) => return of_rounding(error),
        Some(polish::Error::Short { .. }) => return Some("give a longer text".into()),
        _ => {}
    }
    if let Some(trace::Error::Foreign(_)) = cause.downcast_ref::<trace::Error>() {
        return Some("nibble trace makes traces".into());
    }
    if let Some(error) = cause.downcast_ref::<tasks::Error>() {
        return match error {
            tasks::Error::Unrecognized(_) => Some("if it is in one of them, say which with --task-format".into()),
            tasks::Error::Examples { .. } => Some("ask for fewer with --shots".into()),
            tasks::Error::Questions { .. } => {
                Some("give a file of examples with --task-shots, or ask for fewer with --shots".into())
            }
            _ => None,
        };
    }
    match cause.downcast_ref::<KeptError>()? {
        KeptError::Foreign { .. } => Some("delete it, or give another folder with --task-results".into()),
        KeptError::InUse(_) => Some("wait for it, or give another folder with --task-results".into()),
        KeptError::File { .. } => None,
    }
}

fn of_rounding(error: &rounding::Error) -> Option<String> {
    let words = match error {
        rounding::Error::NoRoom { .. } => {
            "make room, write to another disk with -o, or read fewer tokens with --calibration-tokens"
        }
        rounding::Error::Short { .. } => "give a longer text",
        rounding::Error::Temporary { .. } => "write elsewhere with -o",
        _ => return None,
    };
    Some(words.to_string())
}

fn of_comparison(error: &evaluate::Error) -> Option<String> {
    use evaluate::Error::*;
    Some(match error {
        NothingToCompareBy => "pass --text NAME=FILE, --task FILE or --weights".into(),
        FolderCannotRun(folder) => format!("nibble convert {} -q BF16", folder.display()),
        WindowBeyondTraining { trained, .. } => {
            format!("pass a --window of {trained} or less, or --rope-scaling and --rope-scale")
        }
        OtherWindow { .. } => "leave out --window".into(),
        TraceIsWhole => "leave out --windows".into(),
        Exists(_) => "pass --force to replace it".into(),
        Unknown(_) => "move it away, or work in another folder with -o".into(),
        NoRoom { one_at_a_time: true, .. } => "choose fewer with --recipes, or another disk with -o".into(),
        NoRoom { .. } => "choose fewer with --recipes, another disk with -o, or --one-at-a-time".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The advice for an error as the command line gets it.
    fn advised(error: evaluate::Error) -> String {
        super::super::advice(&anyhow::Error::from(error)).unwrap_or_default()
    }

    #[test]
    fn errors_of_parts_are_advised_on_inside_those_of_the_whole() {
        let path = || std::path::PathBuf::from("a.txt");
        let short = texts::Error::Short { path: path(), tokens: 5, window: 512 };
        assert_eq!(advised(short.into()), "give a longer text, or a smaller --window");
        assert!(advised(texts::Error::SameName("en".into()).into()).contains("--text en-2=FILE"));
        assert!(advised(tasks::Error::Unrecognized(path()).into()).contains("--task-format"));
        assert!(advised(tasks::Error::Questions { path: path(), found: 3, wanted: 5 }.into()).contains("--task-shots"));
        let kept = KeptError::Foreign { path: path(), what: "results of another model".into() };
        assert!(advised(kept.into()).contains("--task-results"));
        let no_room = rounding::Error::NoRoom { folder: path(), needed: 3, temporary: 2, missing: 1 };
        let of_rounding =
            |error: rounding::Error| super::super::advice(&anyhow::Error::from(error)).unwrap_or_default();
        assert!(of_rounding(no_room).contains("--calibration-tokens"));
        assert_eq!(advised(evaluate::Error::Exists(path())), "pass --force to replace it");
    }
}
