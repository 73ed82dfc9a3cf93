//! ACPI tables from the text that `acpidump` prints.

/// Bytes of a table.
const MAX_TABLE: usize = 1 << 20;

/// The first table with this signature.
///
/// `acpidump` prints `DMAR @ 0x…`, then lines of an offset, a colon and up to 16 bytes in hexadecimal, then
/// the same bytes as text.
pub(crate) fn table(text: &str, signature: &str) -> Option<Vec<u8>> {
    let mut lines = text.lines();
    lines.find(|line| {
        line.trim_start()
            .strip_prefix(signature)
            .is_some_and(|rest| rest.trim_start().starts_with('@'))
    })?;
    let mut table = Vec::new();
    for line in lines {
        let Some((at, rest)) = line.trim_start().split_once(':') else {
            break;
        };
        let Ok(at) = usize::from_str_radix(at, 16) else { break };
        if at != table.len() || at >= MAX_TABLE {
            break;
        }
        let bytes = rest
            .split_ascii_whitespace()
            .take(16)
            .map_while(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok())?);
        // The text column could look like a byte in the last, short line: the length in the header decides.
        table.extend(bytes);
    }
    let length = table.get(4..8)?.try_into().ok().map(u32::from_le_bytes)?;
    let length = usize::try_from(length).ok()?;
    if length < table.len() {
        table.truncate(length);
    }
    table.starts_with(signature.as_bytes()).then_some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "APIC @ 0x1000\n    0000: 41 50 49 43 0a 00 00 00 01 02  APIC......\n\n\
        DMAR @ 0x0000000000000000\n    0000: 44 4D 41 52 12 00 00 00 01 C3 48 50 00 00 00 00  DMAR......HP....\n    \
        0010: 01 02                                            ab cd\n\n";

    #[test]
    fn a_table_is_found_by_signature_and_cut_to_its_length() {
        let dmar = table(TEXT, "DMAR").expect("there");
        assert_eq!(dmar.len(), 18);
        assert_eq!(dmar.get(16..), Some([1, 2].as_slice()));
        assert_eq!(table(TEXT, "IVRS"), None);
        assert_eq!(table("DMAR @ 0x0\n", "DMAR"), None);
        assert_eq!(table("DMAR @ 0x0\n 0010: 00\n", "DMAR"), None);
    }
}
