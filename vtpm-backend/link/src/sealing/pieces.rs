//! Sealing in pieces: of a large state of which little changed, little of the sealed one changes.
//!
//! ```text
//! offset size
//!      0    8  "vrotsea2"
//!      8   12  nonce      ⎫ AES-256-GCM over nothing; the additional data are the context and the
//!     20   16  tag        ⎭ SHA-256 value of all that follows
//!     36       pieces, each: nonce (12), up to 996 bytes sealed, tag (16)
//! ```
//!
//! The whole is authenticated as one: a piece of an older state does not pass in a newer one. The
//! nonce of a piece is the beginning of HMAC-SHA-256 over its place and its contents, so equal
//! contents at the same place are sealed to equal bytes and different ones under different nonces
//! (a synthetic initialization vector; Rogaway and Shrimpton, "A Provable-Security Treatment of the
//! Key-Wrap Problem", EUROCRYPT 2006). What that shows is which pieces two states of one vRoT in
//! one generation have in common.

use locked_memory::append;
use minicbor::bytes::ByteArray;
use ring::aead::{Aad, NONCE_LEN, Nonce};
use ring::digest::{SHA256, digest};
use ring::hmac;
use zeroize::Zeroizing;

use super::{Content, Keys, Sealer, SealingError, encoded};

const MARK: &[u8; 8] = b"vrotsea2";
const TAG_LEN: usize = 16;
/// Of the state, in one piece. A piece is 1 KiB then.
const PIECE: usize = 1024 - NONCE_LEN - TAG_LEN;
const DOMAIN: &str = "vrot state v2";

/// What is sealed, in the additional data.
#[derive(Clone, Copy)]
enum Place {
    /// The whole.
    Whole,
    /// A piece, by its number.
    Piece(u64),
}

impl Sealer {
    /// Seals a state in pieces.
    pub(super) fn seal_pieces(
        &self,
        content: Content,
        state: &[u8],
    ) -> Result<Vec<u8>, SealingError> {
        let mut pieces = Vec::with_capacity(state.len() + state.len().div_ceil(PIECE) * 28);
        for (number, piece) in (0..).zip(state.chunks(PIECE)) {
            let context = self.context_of(content, Place::Piece(number));
            let mut body = Zeroizing::new(piece.to_vec());
            let (nonce, tag) = self.key.seal_in_place(&context, &mut body)?;
            pieces.extend_from_slice(&nonce);
            pieces.extend_from_slice(&body);
            pieces.extend_from_slice(&tag);
        }
        let context = self.context_of_whole(content, &pieces);
        let (nonce, tag) = self.key.seal_in_place(&context, &mut [])?;
        Ok([MARK, &nonce[..], &tag, &pieces].concat())
    }

    /// Opens what was sealed in pieces; `None` for what is not of this form.
    pub(super) fn open_pieces(
        &self,
        content: Content,
        sealed: &[u8],
    ) -> Option<Result<Zeroizing<Vec<u8>>, SealingError>> {
        let (head, pieces) = sealed
            .strip_prefix(MARK)?
            .split_at_checked(NONCE_LEN + TAG_LEN)?;
        Some(self.open_checked(content, head, pieces))
    }

    fn open_checked(
        &self,
        content: Content,
        head: &[u8],
        pieces: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let whole = self.context_of_whole(content, pieces);
        self.key.open(&whole, head)?;
        let mut state = Zeroizing::new(Vec::with_capacity(pieces.len()));
        for (number, piece) in (0..).zip(pieces.chunks(NONCE_LEN + PIECE + TAG_LEN)) {
            let context = self.context_of(content, Place::Piece(number));
            append(&mut state, &self.key.open(&context, piece)?);
        }
        Ok(state)
    }

    fn context_of(&self, content: Content, place: Place) -> Vec<u8> {
        let place = match place {
            Place::Whole => None,
            Place::Piece(number) => Some(number),
        };
        encoded((
            DOMAIN,
            content.name(),
            ByteArray::from(self.vrot),
            self.generation,
            place,
        ))
    }

    fn context_of_whole(&self, content: Content, pieces: &[u8]) -> Vec<u8> {
        let mut context = self.context_of(content, Place::Whole);
        context.extend_from_slice(digest(&SHA256, pieces).as_ref());
        context
    }
}

impl Keys {
    /// Seals in place; nonce and tag.
    fn seal_in_place(
        &self,
        context: &[u8],
        body: &mut [u8],
    ) -> Result<([u8; NONCE_LEN], [u8; TAG_LEN]), SealingError> {
        let mut mac = hmac::Context::with_key(&self.nonces);
        mac.update(context);
        mac.update(body);
        let mac = mac.sign();
        let nonce = *(mac.as_ref().first_chunk()).ok_or(SealingError::NotSealed)?;
        let tag = self
            .cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                body,
            )
            .map_err(|_| SealingError::NotSealed)?;
        let tag = tag.as_ref().try_into();
        Ok((nonce, tag.map_err(|_| SealingError::NotSealed)?))
    }
}
