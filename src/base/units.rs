//! Sizes, counts and durations as people read them.

/// Formats bytes in powers of 1000, as disks and downloads are labelled: `19.51 GB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    // 999.995 would print as 1000.00.
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// Formats a count: `34.39 B`, `6.40 M`, `812`.
pub fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// Formats a tensor's sizes: `7168 x 20480`.
pub fn shape(dims: &[u64]) -> String {
    dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_tensor_are_in_the_order_given() {
        assert_eq!(shape(&[7168, 20480]), "7168 x 20480");
        assert_eq!(shape(&[64]), "64");
    }

    #[test]
    fn sizes_read_as_on_a_disk_label() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(999_999), "1.00 MB");
        assert_eq!(bytes(19_510_000_000), "19.51 GB");
        assert_eq!(bytes(u64::MAX), "18446.74 PB");
    }

    #[test]
    fn counts_read_as_parameters() {
        assert_eq!(count(812), "812");
        assert_eq!(count(6_400_000), "6.40 M");
        assert_eq!(count(34_388_917_248), "34.39 B");
    }
}
