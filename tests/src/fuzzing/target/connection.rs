//! What a peer sends on an attested connection, once TLS is out of the way.

use attested_tls::fuzzing::{self, EVIDENCE};

use super::Target;

/// Frames. The first byte is the size of the pieces that they come in.
pub(super) const FRAMES: Target = Target {
    name: "connection-frames",
    run: |input| {
        fuzzing::frames(input);
    },
    seeds: || {
        let frames = [
            frame(0, b"data"),
            frame(2, &70_000_u32.to_be_bytes()),
            frame(3, &[7; 200]),
            frame(4, &[7]),
            frame(1, &[]),
            frame(5, &[0]),
        ]
        .concat();
        let in_pieces = |piece| [&[piece][..], &frames].concat();
        Ok(vec![in_pieces(255), in_pieces(3)])
    },
};

/// Control messages, and the order that they come in.
pub(super) const MESSAGES: Target = Target {
    name: "connection-messages",
    run: |input| {
        fuzzing::messages(input);
    },
    seeds: || {
        // [0, [{0: 1, 1: [0, []]}]]: nothing is demanded.
        let hello = [0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 0, 0x80];
        // [0, [{0: 1, 1: [1, [[1], policy]]}]]
        let demanding = [
            &[
                0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 1, 0x82, 0x81, 1, 0x58, 32,
            ][..],
            &[7; 32],
        ]
        .concat();
        let request = |number| {
            let begin = [0x82, 1, 0x81, 0xa2, 1, number, 2, 0x58, 32];
            [&begin[..], &[7; 32]].concat()
        };
        let answer = |number| {
            let begin = [0x82, 2, 0x81, 0xa2, 1, number, 2, 0x82, 0, 0x81, 0x48];
            [&begin[..], EVIDENCE].concat()
        };
        let none = [0x82, 2, 0x81, 0xa2, 1, 1, 2, 0x82, 1, 0x81, 4];
        let accepted = |number| [0x82, 3, 0x81, 0xa2, 1, number, 2, 0x19, 0x75, 0x30];
        let messages = |all: &[&[u8]]| -> Vec<u8> {
            (all.iter()).flat_map(|message| frame(4, message)).collect()
        };
        let rest = |seconds| frame(0, b"-").repeat(seconds);
        Ok(vec![
            [
                messages(&[&hello, &answer(1)]),
                rest(1),
                messages(&[&answer(2)]),
                rest(2),
                messages(&[&answer(3)]),
            ]
            .concat(),
            messages(&[
                &demanding,
                &request(1),
                &accepted(1),
                &request(2),
                &answer(1),
            ]),
            messages(&[&demanding, &request(1), &none]),
        ])
    },
};

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_understood_to_their_ends() -> anyhow::Result<()> {
        let frames = (FRAMES.seeds)()?;
        let counts: Vec<_> = frames.iter().map(|seed| fuzzing::frames(seed)).collect();
        assert_eq!(counts, [6, 6]);
        let messages = (MESSAGES.seeds)()?;
        let counts: Vec<_> = (messages.iter())
            .map(|seed| fuzzing::messages(seed))
            .collect();
        assert_eq!(counts, [4, 5, 2]);
        Ok(())
    }
}
