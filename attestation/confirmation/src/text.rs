//! Texts that a person can read as they are meant.
//!
//! A terminal shows one column for each of their characters, none changes how others are shown, and none is
//! there to be taken for another (Unicode Technical Standard #39).

use printable::is_printable;
use unicode_script::{Script, UnicodeScript};
use unicode_security::{GeneralSecurityProfile, skeleton};

/// A text that can be confirmed: 1 to [`MAX_TEXT`] characters, all of which can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfirmableText(String);

/// Where a character stands, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in its line.
    pub column: usize,
}

/// Why a text is not shown to anybody for confirmation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextRefused {
    /// Nothing to read.
    #[error("the text has nothing but blanks")]
    Empty,
    /// More than a person reads.
    #[error("the text has more than {MAX_TEXT} characters")]
    TooLong,
    /// A character that is not shown.
    #[error("{place}: U+{:04X} {why}", u32::from(*character))]
    Character {
        /// The character.
        character: char,
        /// Where.
        place: Place,
        /// Why.
        why: Unshowable,
    },
    /// One word with letters of several scripts.
    #[error(
        "{place}: U+{:04X} is {found}, and the word that it stands in is {begun}: letters of different \
         scripts look alike",
        u32::from(*character)
    )]
    MixedScripts {
        /// The letter.
        character: char,
        /// Where.
        place: Place,
        /// Its script.
        found: &'static str,
        /// The script that its word begins in.
        begun: &'static str,
    },
    /// A word in another script that reads as one in Latin letters.
    #[error("{place}: the word that begins with U+{:04X} reads as one in Latin letters, and is {script}",
        u32::from(*character))]
    Lookalike {
        /// Its first letter.
        character: char,
        /// Where.
        place: Place,
        /// Its script.
        script: &'static str,
    },
    /// A run of blanks that hides what follows: it has lines of its own where the text is wrapped.
    #[error("{place}: more than {MAX_BLANKS} blanks one after the other")]
    Blanks {
        /// The first that is too many.
        place: Place,
    },
    /// Blank lines that hide what follows.
    #[error("line {line}: more than two blank lines one after the other")]
    BlankLines {
        /// The first that is too many.
        line: usize,
    },
}

/// Why a character is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unshowable {
    /// Control, bidirectional, zero width, combining, private use and the like.
    #[error("is not printable (a control, bidirectional, combining or invisible character)")]
    NotPrintable,
    /// Neither a letter nor one of a few signs.
    #[error("is no letter, and none of the signs that can be told from others: write it in ASCII")]
    Sign,
    /// A script that a console does not show letter by letter.
    #[error(
        "is in a script that a console does not show reliably: Latin, Greek and Cyrillic it does"
    )]
    Script,
    /// A letter for specialists.
    #[error("is not in general use (Unicode Technical Standard #39)")]
    Uncommon,
    /// A Latin letter that looks like another.
    #[error("looks like `{0}`")]
    LooksLike(char),
}

/// Characters of a text. It is a page that somebody reads before they confirm, no contract.
pub const MAX_TEXT: usize = 4096;
const MAX_BLANK_LINES: usize = 2;
/// Less than the narrowest terminal shows in a line.
const MAX_BLANKS: usize = 32;
/// Signs beyond ASCII that are shown in one column and look like no other.
const SIGNS: &str = "€£¥§°–„“”’…«»±";

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, character {}", self.line, self.column)
    }
}

impl ConfirmableText {
    /// Takes a text that can be shown.
    pub fn new(text: &str) -> Result<Self, TextRefused> {
        // The bound first: everything else reads the whole text.
        if text.chars().nth(MAX_TEXT).is_some() {
            return Err(TextRefused::TooLong);
        }
        if text.trim().is_empty() {
            return Err(TextRefused::Empty);
        }
        let mut words = Words::default();
        let mut blank = 0;
        for (line, number) in text.split('\n').zip(1..) {
            blank = match (line.trim().is_empty(), line.ends_with(' ')) {
                (true, _) => blank + 1,
                // Where this line is wrapped, its last blanks may have a line of their own.
                (false, true) => 1,
                (false, false) => 0,
            };
            if blank > MAX_BLANK_LINES {
                return Err(TextRefused::BlankLines { line: number });
            }
            let mut run = 0;
            for (character, column) in line.chars().zip(1..) {
                let place = Place {
                    line: number,
                    column,
                };
                run = if character == ' ' { run + 1 } else { 0 };
                if run > MAX_BLANKS {
                    return Err(TextRefused::Blanks { place });
                }
                check(character).map_err(|why| TextRefused::Character {
                    character,
                    place,
                    why,
                })?;
                words.take(character, place)?;
            }
            words.end();
        }
        words.judge()?;
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(c: char) -> Result<(), Unshowable> {
    if (' '..='~').contains(&c) || SIGNS.contains(c) {
        return Ok(());
    }
    if !is_printable(c) {
        return Err(Unshowable::NotPrintable);
    }
    if !c.is_alphabetic() {
        return Err(Unshowable::Sign);
    }
    if script_name(c).is_none() {
        return Err(Unshowable::Script);
    }
    if !c.identifier_allowed() {
        return Err(Unshowable::Uncommon);
    }
    match looks_like(c) {
        Some(other) if c.script() == Script::Latin => Err(Unshowable::LooksLike(other)),
        _ => Ok(()),
    }
}

/// The ASCII character that this one can be taken for (Unicode Technical Standard #39, §4).
pub fn looks_like(c: char) -> Option<char> {
    let mut shape = skeleton(c.encode_utf8(&mut [0; 4]))
        .fuse()
        .collect::<Vec<_>>();
    let first = shape.pop()?;
    (shape.is_empty() && first.is_ascii()).then_some(first)
}

fn script_name(c: char) -> Option<&'static str> {
    match c.script() {
        Script::Latin => Some("Latin"),
        Script::Greek => Some("Greek"),
        Script::Cyrillic => Some("Cyrillic"),
        _ => None,
    }
}

/// The words of a text, as far as scripts are concerned.
#[derive(Default)]
struct Words {
    open: Option<Word>,
    has_latin: bool,
    /// Words in other scripts that read as Latin ones, of which the first counts; and others.
    lookalike: Option<Word>,
    has_distinct: bool,
}

#[derive(Clone, Copy)]
struct Word {
    first: char,
    place: Place,
    script: &'static str,
    looks_latin: bool,
}

impl Words {
    fn take(&mut self, c: char, place: Place) -> Result<(), TextRefused> {
        if !c.is_alphabetic() {
            // Digits are part of a word and have no script.
            if !c.is_ascii_digit() {
                self.end();
            }
            return Ok(());
        }
        let Some(script) = script_name(c) else {
            return Ok(());
        };
        let looks_latin = looks_like(c).is_some();
        match &mut self.open {
            Some(word) if word.script != script => Err(TextRefused::MixedScripts {
                character: c,
                place,
                found: script,
                begun: word.script,
            }),
            Some(word) => {
                word.looks_latin &= looks_latin;
                Ok(())
            }
            None => {
                self.open = Some(Word {
                    first: c,
                    place,
                    script,
                    looks_latin,
                });
                Ok(())
            }
        }
    }

    fn end(&mut self) {
        let Some(word) = self.open.take() else {
            return;
        };
        if word.script == "Latin" {
            self.has_latin = true;
        } else if word.looks_latin {
            self.lookalike.get_or_insert(word);
        } else {
            self.has_distinct = true;
        }
    }

    /// A word that reads as a Latin one is read as what it is among others of its script alone.
    fn judge(self) -> Result<(), TextRefused> {
        match self.lookalike {
            Some(word) if self.has_latin || !self.has_distinct => Err(TextRefused::Lookalike {
                character: word.first,
                place: word.place,
                script: word.script,
            }),
            _ => Ok(()),
        }
    }
}
