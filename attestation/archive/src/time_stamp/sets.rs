//! How many elements the sets in a token have, before it is decoded.
//!
//! Whoever answers a request, or made an archive, chooses them. The decoder sorts each set by insertion: with the
//! elements that a token has room for, that would take minutes.

use super::error::TimeStampError;

/// Algorithms, certificates, revocation lists, signers, attributes, parts of names: each is a few.
const MAX_ELEMENTS: usize = 64;
/// Certificates in a token are nested half as deep.
const MAX_DEPTH: usize = 32;
/// Identifiers of keys have this form. The decoder takes one for a set, too, and finds only when it has sorted it
/// that it is none: in so many bytes there are not too many elements.
const MAX_PRIMITIVE: usize = 4096;

/// Bit of a tag's first byte: the contents are elements.
const CONSTRUCTED: u8 = 0x20;
/// Upper two bits of a tag's first byte, and what they are where a tag stands for another one (IMPLICIT).
const CLASS: u8 = 0xc0;
const CONTEXT_SPECIFIC: u8 = 0x80;
/// Five bits that say that the tag's number follows.
const LONG_TAG: u8 = 0x1f;
/// Its elements are in the order that they have: revocation lists have thousands of entries.
const SEQUENCE: u8 = 0x30;

/// Refuses sets of too many elements. A set may have any tag (IMPLICIT) but that of a sequence.
pub(super) fn check(der: &[u8]) -> Result<(), TimeStampError> {
    elements(der, None, MAX_DEPTH)
}

fn elements(mut rest: &[u8], most: Option<usize>, depth: usize) -> Result<(), TimeStampError> {
    let depth = (depth.checked_sub(1)).ok_or(TimeStampError::Malformed(
        "its elements are nested too deep",
    ))?;
    let mut found = 0;
    while !rest.is_empty() {
        found += 1;
        if most.is_some_and(|most| found > most) {
            return Err(TimeStampError::Malformed(
                "a set in it has too many elements",
            ));
        }
        let element = Element::split(rest).ok_or(TimeStampError::Malformed(
            "it is no valid DER: a length in it is wrong",
        ))?;
        if element.tag & CONSTRUCTED != 0 {
            let most = (element.tag != SEQUENCE).then_some(MAX_ELEMENTS);
            elements(element.contents, most, depth)?;
        } else if element.tag & CLASS == CONTEXT_SPECIFIC && element.contents.len() > MAX_PRIMITIVE
        {
            return Err(TimeStampError::Malformed("an identifier in it is too long"));
        }
        rest = element.behind;
    }
    Ok(())
}

/// An element, and what is behind it.
struct Element<'a> {
    /// The first byte.
    tag: u8,
    contents: &'a [u8],
    behind: &'a [u8],
}

impl<'a> Element<'a> {
    fn split(bytes: &'a [u8]) -> Option<Self> {
        let (&tag, mut rest) = bytes.split_first()?;
        if tag & LONG_TAG == LONG_TAG {
            // All bytes of the number but the last have the upper bit.
            let last = rest.iter().position(|byte| byte & 0x80 == 0)?;
            rest = rest.get(last + 1..)?;
        }
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let (octets, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if octets.is_empty() || octets.len() > size_of::<u32>() {
                return None;
            }
            length = (octets.iter()).fold(0, |length, octet| length << 8 | usize::from(*octet));
            rest = behind;
        }
        let (contents, behind) = rest.split_at_checked(length)?;
        Some(Self {
            tag,
            contents,
            behind,
        })
    }
}
