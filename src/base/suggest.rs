//! Suggests known names for one that does not exist.

/// Longer names are skipped: nobody types them, and only a hostile file has many.
const MAX_BYTES: usize = 256;

/// Returns up to three of the `known` names nearest to `wrong`: those a few letters away, or containing `wrong`.
///
/// Names equally near keep the order in which they are given.
pub fn suggest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let most = wrong.chars().count() / 3 + 1;
    let mut near: Vec<(usize, &str)> = known
        .filter(|name| name.len() <= MAX_BYTES)
        .map(|name| (strsim::levenshtein(wrong, name), name))
        .filter(|(distance, name)| *distance <= most || (!wrong.is_empty() && name.contains(wrong)))
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    let nearest = near.first().map(|(distance, _)| *distance);
    near.into_iter().take_while(|(distance, _)| Some(*distance) == nearest).take(3).map(|(_, name)| name).collect()
}

/// Returns `did you mean a, b or c?`, or `None` without names.
pub fn question(names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [one] => Some(format!("did you mean {one}?")),
        [init @ .., last] => Some(format!("did you mean {} or {last}?", init.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_the_nearest_and_nothing_far() {
        let names = ["ffn_up", "ffn_down", "ffn_gate", "output"];
        assert_eq!(suggest("ffn_dwn", names.into_iter()), ["ffn_down"]);
        assert_eq!(suggest("ffn_p", names.into_iter()), ["ffn_up"]);
        assert_eq!(suggest("gate", names.into_iter()), ["ffn_gate"], "a part of it");
        assert!(suggest("embedding", names.into_iter()).is_empty());
        assert!(suggest("", names.into_iter()).is_empty());
        let long = "ffn_up".repeat(50);
        assert!(suggest("ffn_up", [long.as_str()].into_iter()).is_empty());
    }

    #[test]
    fn three_at_most_are_suggested_in_the_order_given() {
        let names = ["blk.3.w", "blk.2.w", "blk.1.w", "blk.0.w"];
        let found = suggest("blk.7.w", names.into_iter());
        assert_eq!(found, ["blk.3.w", "blk.2.w", "blk.1.w"]);
        let found: Vec<String> = found.into_iter().map(str::to_string).collect();
        assert_eq!(question(&found).as_deref(), Some("did you mean blk.3.w, blk.2.w or blk.1.w?"));
        assert_eq!(question(&found[..1]).as_deref(), Some("did you mean blk.3.w?"));
        assert_eq!(question(&[]), None);
    }
}
