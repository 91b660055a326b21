//! The options of a QEMU command line and their values.

use std::ffi::OsString;

/// Options without a value.
const WITHOUT_VALUE: [&str; 14] = [
    "S",
    "daemonize",
    "enable-kvm",
    "full-screen",
    "h",
    "help",
    "no-acpi",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "snapshot",
];

/// Options whose value is the next word, whatever it looks like.
const WITH_VALUE: [&str; 15] = [
    "M", "append", "bios", "blockdev", "cpu", "device", "drive", "initrd", "kernel", "m",
    "machine", "name", "smp", "tpmdev", "uuid",
];

/// QEMU's options (`-x`, or `--x`) and the values of those that have one, which may begin with a dash
/// themselves.
pub(super) fn options(words: &[OsString]) -> impl Iterator<Item = (String, Option<&OsString>)> {
    let mut words = words.iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let word = words.next()?.to_string_lossy();
            let Some(option) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                continue;
            };
            let option = option.strip_prefix('-').unwrap_or(option).to_owned();
            if WITHOUT_VALUE.contains(&option.as_str()) {
                return Some((option, None));
            }
            // Of an option that is not known here, a word with a dash is the next option.
            let is_value = |word: &&&OsString| {
                WITH_VALUE.contains(&option.as_str()) || !word.to_string_lossy().starts_with('-')
            };
            let has_value = words.peek().filter(is_value).is_some();
            let value = if has_value { words.next() } else { None };
            return Some((option, value));
        }
    })
}

/// The entries of a value, as `(key, value)`; a comma in a value is written twice (qemu(1)). The first
/// one may lack its key: then that is `implied`.
pub(super) fn entries(value: &str, implied: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut characters = value.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, words.last_mut()) {
            (',', Some(word)) if characters.peek() == Some(&',') => {
                characters.next();
                word.push(',');
            }
            (',', _) => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    let entry = |(index, word): (usize, &String)| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None if index == 0 => (implied.to_owned(), word.clone()),
        None => (word.clone(), "on".to_owned()),
    };
    words.iter().enumerate().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_keys_and_doubled_commas() {
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        assert_eq!(
            entries("q35,smm=on,x", "type"),
            pairs(&[("type", "q35"), ("smm", "on"), ("x", "on")])
        );
        assert_eq!(
            entries("file=a,,b,if=pflash", "file"),
            pairs(&[("file", "a,b"), ("if", "pflash")])
        );
    }
}
