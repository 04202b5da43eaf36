//! Size labels of models, such as `34B`.

/// Returns the size label of a model with `n_weights` weights: `34B`, `8.8B`, `6.4M`, `260K`.
///
/// Rounds as llama.cpp's converter does: to one decimal below 10, to none above.
pub fn size_label(n_weights: u64) -> String {
    let n = n_weights as f64;
    let (value, unit) = match n_weights {
        0..1_000_000 => (n / 1e3, 'K'),
        1_000_000..1_000_000_000 => (n / 1e6, 'M'),
        1_000_000_000..1_000_000_000_000 => (n / 1e9, 'B'),
        _ => (n / 1e12, 'T'),
    };
    let digits = if value < 9.95 { 1 } else { 0 };
    let text = format!("{value:.digits$}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_label_has_the_precision_people_use() {
        assert_eq!(size_label(34_388_917_248), "34B");
        assert_eq!(size_label(8_829_407_232), "8.8B");
        assert_eq!(size_label(6_061_035_520), "6.1B");
        assert_eq!(size_label(6_424_832), "6.4M");
        assert_eq!(size_label(9_960_000), "10M");
        assert_eq!(size_label(2_000_000), "2M");
        assert_eq!(size_label(260_032), "260K");
    }
}
