//! Options that swtpm takes with commas between: `type=unixio,path=/run/x,mode=0600,terminate`.

use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

/// What was given to one option, as far as it was not asked for yet.
pub(crate) struct Comma {
    option: &'static str,
    parts: Vec<(String, Option<String>)>,
}

impl Comma {
    /// Takes it apart; each name may come once.
    pub(crate) fn parse(option: &'static str, text: &str) -> Result<Self> {
        let mut parts: Vec<(String, Option<String>)> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (part, None),
            };
            let is_new = !parts.iter().any(|(known, _)| known == name);
            ensure!(is_new, "{option}: {name:?} is given twice");
            parts.push((name.to_owned(), value));
        }
        Ok(Self { option, parts })
    }

    fn take(&mut self, name: &str) -> Option<Option<String>> {
        let at = self.parts.iter().position(|(known, _)| known == name)?;
        Some(self.parts.remove(at).1)
    }

    /// The text after `name=`.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>> {
        let option = self.option;
        match self.take(name) {
            None => Ok(None),
            Some(Some(value)) if !value.is_empty() => Ok(Some(value)),
            Some(_) => bail!("{option}: {name}= needs a value"),
        }
    }

    /// The value after `name=`.
    pub(crate) fn value<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => bail!("{}: {name}={text:?} cannot be used: {error}", self.option),
        }
    }

    /// Permissions in octal digits.
    pub(crate) fn mode(&mut self) -> Result<Option<u32>> {
        let Some(text) = self.text("mode")? else {
            return Ok(None);
        };
        let mode = u32::from_str_radix(&text, 8).ok();
        let mode = mode.filter(|mode| *mode <= 0o777);
        mode.map(Some).with_context(|| {
            let option = self.option;
            format!("{option}: mode={text:?} is none: give octal digits, at most 0777")
        })
    }

    /// Whether a name without a value is there.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool> {
        match self.take(name) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(_)) => bail!("{}: {name} has no value", self.option),
        }
    }

    /// Refuses what nobody asked for, and names what there is.
    pub(crate) fn end(self, known: &str) -> Result<()> {
        match self.parts.first() {
            None => Ok(()),
            Some((name, _)) => bail!("{}: there is no {name:?}; there are {known}", self.option),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_or_given_twice_or_lacks_its_value_is_refused() -> Result<()> {
        let mut options = Comma::parse("--ctrl", "type=unixio,mode=0660,terminate,uid=7")?;
        assert_eq!(options.text("type")?.as_deref(), Some("unixio"));
        assert_eq!(options.mode()?, Some(0o660));
        assert_eq!(options.value("uid")?, Some(7));
        assert!(options.flag("terminate")?);
        assert!(!options.flag("disconnect")?);
        options.end("nothing")?;
        assert!(Comma::parse("--ctrl", "fd=3,fd=4").is_err());
        assert!(Comma::parse("--ctrl", "mode=1777")?.mode().is_err());
        assert!(Comma::parse("--ctrl", "mode=0x1")?.mode().is_err());
        assert!(Comma::parse("--ctrl", "path=")?.text("path").is_err());
        assert!(Comma::parse("--ctrl", "path")?.text("path").is_err());
        assert!(
            Comma::parse("--ctrl", "terminate=1")?
                .flag("terminate")
                .is_err()
        );
        let error = Comma::parse("--ctrl", "unknown=1")?
            .end("type=, path=")
            .err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(
            error,
            "--ctrl: there is no \"unknown\"; there are type=, path="
        );
        Ok(())
    }
}
