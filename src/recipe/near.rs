//! What somebody may have meant by a name that does not exist.

/// Up to three of `names` that differ from `wrong` in at most a third of its letters, nearest first.
pub(super) fn near<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wrong: Vec<char> = wrong.chars().collect();
    let mut found: Vec<(usize, &str)> =
        names.map(|name| (distance(&wrong, name), name)).filter(|(distance, _)| *distance <= wrong.len() / 3).collect();
    found.sort();
    found.dedup();
    found.into_iter().take(3).map(|(_, name)| name.to_string()).collect()
}

/// `; did you mean a or b?` as the end of a sentence, or nothing.
pub(super) fn suggestion(near: &[String]) -> String {
    match near {
        [] => String::new(),
        names => format!(" (did you mean {}?)", names.join(" or ")),
    }
}

/// Levenshtein's: letters put in, left out or changed.
fn distance(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, b) in b.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, a) in a.iter().enumerate() {
            let changed = diagonal + usize::from(*a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_letters_that_differ() {
        let distance = |a: &str, b| distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(distance("", ""), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("ffn_dwon", "ffn_down"), 2);
    }

    #[test]
    fn suggests_the_nearest_first_and_nothing_far() {
        let names = ["ffn_up", "ffn_down", "ffn_gate", "output"];
        assert_eq!(near("ffn_dwn", names.into_iter()), ["ffn_down"]);
        assert_eq!(near("ffn_p", names.into_iter()), ["ffn_up"]);
        assert!(near("embedding", names.into_iter()).is_empty());
    }
}
