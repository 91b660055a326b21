//! Errors with their causes, on one line for people.

use std::error::Error;
use std::fmt;

/// Shows an error and everything that caused it: `what failed: why: why that`.
#[derive(Clone, Copy, Debug)]
pub struct WithCauses<'a>(pub &'a dyn Error);

impl fmt::Display for WithCauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        f.write_str(&shown)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their cause in their own text.
            if !shown.contains(&text) {
                write!(f, ": {text}")?;
            }
            shown = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_and_are_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner: {0}; what to do")]
        struct Inner(#[source] std::fmt::Error);
        let error = Outer(Inner(std::fmt::Error));
        assert_eq!(
            WithCauses(&error).to_string(),
            format!("outer: inner: {}; what to do", std::fmt::Error)
        );
    }
}
