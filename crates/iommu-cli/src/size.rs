//! Sizes as people write them: `4K`, `64M`, `2G`, or plain bytes.

/// Parses a number of bytes with an optional binary suffix K, M, G or T.
///
/// # Errors
/// A sentence that says what was expected.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        other => return Err(format!("unknown unit {other:?}: sizes end in K, M, G or T, as in 64M")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a size: expected a number such as 64M"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} does not fit in 64 bits"))
}

/// A size as people read it: the largest binary unit that leaves at most one decimal.
pub(crate) fn show(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift == 0 {
            continue;
        }
        let tenths = ((u128::from(bytes) * 10) >> shift) % 10;
        let whole = bytes >> shift;
        return if tenths == 0 {
            format!("{whole} {unit}")
        } else {
            format!("{whole}.{tenths} {unit}")
        };
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_binary_and_case_blind() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64M"), Ok(64 << 20));
        assert_eq!(parse("2gib"), Ok(2 << 30));
        assert!(parse("12Q").is_err());
        assert!(parse("").is_err());
        assert!(parse("99999999999T").is_err());
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(8192), "8 KiB");
        assert_eq!(show((3 << 30) / 2), "1.5 GiB");
    }
}
