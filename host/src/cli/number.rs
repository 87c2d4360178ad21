//! Sizes, numbers and switches as QEMU spells them.

/// A size in bytes: decimal with an optional suffix `B`, `K`, `M`, `G`, `T`, `P` or `E` (powers of
/// 1024; small letters too), or hexadecimal after `0x`. Without a suffix a decimal number is in
/// units of `1 << shift` bytes.
pub(crate) fn size(text: &str, shift: u32) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return digits(hex, 16);
    }
    let (number, shift) = match text.char_indices().next_back()? {
        (at, suffix) if suffix.is_ascii_alphabetic() => {
            let power = "BKMGTPE".find(suffix.to_ascii_uppercase())?;
            (&text[..at], 10 * power as u32)
        }
        _ => (text, shift),
    };
    digits(number, 10)?.checked_mul(1_u64.checked_shl(shift)?)
}

/// A number, decimal or hexadecimal after `0x`.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => digits(hex, 16),
        None => digits(text, 10),
    }
}

/// Digits only: the standard library would take a sign as well.
pub(super) fn digits(text: &str, radix: u32) -> Option<u64> {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    plain
        .then(|| u64::from_str_radix(text, radix).ok())
        .flatten()
}

/// A switch.
pub(crate) fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_a_default_unit() {
        for (text, bytes) in [
            ("4G", Some(4 << 30)),
            ("128", Some(128 << 20)),
            ("128k", Some(128 << 10)),
            ("1T", Some(1 << 40)),
            ("5B", Some(5)),
            ("0x1000", Some(0x1000)),
            ("", None),
            ("G", None),
            ("-1", None),
            ("+1", None),
            ("1Q", None),
            ("1.5G", None),
            ("1ü", None),
            ("99999999999999999999", None),
            ("16E", None),
        ] {
            assert_eq!(size(text, 20), bytes, "{text}");
        }
        assert_eq!(size("128", 0), Some(128));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("12"), Some(12));
        assert_eq!(number("0xfF"), Some(255));
        assert_eq!(number("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "0x", "-1", "1k", "18446744073709551616", " 1"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_switch_has_the_four_spellings_of_qemu() {
        assert_eq!(switch("on").zip(switch("true")), Some((true, true)));
        assert_eq!(switch("off").zip(switch("no")), Some((false, false)));
        assert_eq!(switch("ON"), None);
    }
}
