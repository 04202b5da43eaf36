//! What somebody may have meant by a name that does not exist.

/// Longer names are passed over: nobody types them, and only a hostile file has many.
const MAX_BYTES: usize = 256;

/// The nearest of the `known` names, three at most: few letters away, or with `wrong` as a part of them.
///
/// Names equally near stay in the order in which they are given.
pub fn near<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let most = wrong.chars().count() / 3 + 1;
    let mut near: Vec<(usize, &str)> = known
        .filter(|name| name.len() <= MAX_BYTES)
        .map(|name| (edits(wrong, name), name))
        .filter(|(distance, name)| *distance <= most || (!wrong.is_empty() && name.contains(wrong)))
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    let nearest = near.first().map(|(distance, _)| *distance);
    near.into_iter().take_while(|(distance, _)| Some(*distance) == nearest).take(3).map(|(_, name)| name).collect()
}

/// `did you mean a, b or c?`; `None` where there is nothing to ask.
pub fn question(names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [one] => Some(format!("did you mean {one}?")),
        [init @ .., last] => Some(format!("did you mean {} or {last}?", init.join(", "))),
    }
}

/// Letters to insert, take out or replace that make `a` of `b`: Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_in_letters() {
        assert_eq!(edits("", ""), 0);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", ""), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("零一万物", "零一物"), 1);
        assert_eq!(edits("ffn_dwon", "ffn_down"), 2);
    }

    #[test]
    fn suggests_the_nearest_and_nothing_far() {
        let names = ["ffn_up", "ffn_down", "ffn_gate", "output"];
        assert_eq!(near("ffn_dwn", names.into_iter()), ["ffn_down"]);
        assert_eq!(near("ffn_p", names.into_iter()), ["ffn_up"]);
        assert_eq!(near("gate", names.into_iter()), ["ffn_gate"], "a part of it");
        assert!(near("embedding", names.into_iter()).is_empty());
        assert!(near("", names.into_iter()).is_empty());
        let long = "ffn_up".repeat(50);
        assert!(near("ffn_up", [long.as_str()].into_iter()).is_empty());
    }

    #[test]
    fn three_at_most_are_suggested_in_the_order_given() {
        let names = ["blk.3.w", "blk.2.w", "blk.1.w", "blk.0.w"];
        let found = near("blk.7.w", names.into_iter());
        assert_eq!(found, ["blk.3.w", "blk.2.w", "blk.1.w"]);
        let found: Vec<String> = found.into_iter().map(str::to_string).collect();
        assert_eq!(question(&found).as_deref(), Some("did you mean blk.3.w, blk.2.w or blk.1.w?"));
        assert_eq!(question(&found[..1]).as_deref(), Some("did you mean blk.3.w?"));
        assert_eq!(question(&[]), None);
    }
}
