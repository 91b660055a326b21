//! The font of a virtual terminal: whether a text's characters are seen as what they are.
//!
//! A console's font has 256 or 512 glyphs. The kernel shows another one in place of a character that the font
//! lacks, and many fonts name one glyph for several characters: that of `E` for `€`, say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use confirmation::{ConfirmableText, looks_like};
use rustix::ioctl::{Opcode, Updater, ioctl};

/// Which glyph a font has for a character (`struct unipair` of `linux/kd.h`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Pair {
    character: u16,
    glyph: u16,
}

/// `struct unimapdesc` of `linux/kd.h`.
#[repr(C)]
struct Map {
    length: u16,
    pairs: *mut Pair,
}

/// The glyphs of a terminal's font, by character.
pub(crate) struct Font(BTreeMap<char, u16>);

/// A character that would not be seen as what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this terminal's font shows nothing of its own for U+{:04X}: load one that does (setfont), or write it in ASCII",
    u32::from(*.0)
)]
pub(crate) struct NotInFont(char);

const GIO_UNIMAP: Opcode = 0x4b66;

impl Font {
    /// That of a virtual terminal.
    pub(crate) fn of(terminal: &File) -> io::Result<Self> {
        let mut pairs = vec![Pair::default(); usize::from(u16::MAX)];
        let mut map = Map {
            length: u16::MAX,
            pairs: pairs.as_mut_ptr(),
        };
        #[expect(unsafe_code, reason = "an ioctl takes what its number says")]
        // SAFETY: it writes as many pairs as `length` says, which there are, and then how many there were.
        unsafe { ioctl(terminal, Updater::<GIO_UNIMAP, Map>::new(&mut map)) }?;
        pairs.truncate(map.length.into());
        Ok(Self::new(pairs.iter().filter_map(|pair| {
            Some((char::from_u32(pair.character.into())?, pair.glyph))
        })))
    }

    fn new(glyphs: impl IntoIterator<Item = (char, u16)>) -> Self {
        Self(glyphs.into_iter().collect())
    }

    /// Whether each character has a glyph that stands for no ASCII character, but one that looks like it.
    pub(crate) fn check(&self, text: &ConfirmableText) -> Result<(), NotInFont> {
        for character in text.as_str().chars().filter(|c| *c != '\n') {
            let glyph = self.0.get(&character).ok_or(NotInFont(character))?;
            let is_taken = (' '..='~').any(|ascii| {
                ascii != character
                    && self.0.get(&ascii) == Some(glyph)
                    && looks_like(character) != Some(ascii)
            });
            if is_taken {
                return Err(NotInFont(character));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_the_font_shows_as_another_one_is_refused() -> anyhow::Result<()> {
        let ascii = (' '..='~').zip(32..);
        let others = [('ä', 132), ('€', 69), ('а', 97), ('д', 200)];
        let font = Font::new(ascii.chain(others));
        for (text, refused) in [
            ("Pay 100 EUR\nto Späth", None),
            // The glyph of E, and none.
            ("100 €", Some('€')),
            ("100 £", Some('£')),
            // Cyrillic letters that look like Latin ones have the glyphs of these.
            ("дада", None),
        ] {
            let found = font.check(&ConfirmableText::new(text)?).err();
            assert_eq!(found, refused.map(NotInFont), "{text}");
        }
        Ok(())
    }
}
