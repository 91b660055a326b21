//! Changing inputs the way parsers dislike.

/// A small generator of pseudo-random numbers (xorshift64*): a run can be repeated by its seed.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, or 0 when `bound` is 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(self.next().checked_rem(bound).unwrap_or(0)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Some changes to `input`, perhaps with parts of `other`.
pub(super) fn mutate(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        change(&mut bytes, other, random);
        bytes.truncate(MOST_BYTES);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(8) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            let value = random.byte();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        // Lengths and counts are what parsers trust: put limits where they may be.
        2 => {
            let number = BOUNDARIES
                .get(random.below(BOUNDARIES.len()))
                .copied()
                .unwrap_or_default();
            let encoded = if random.below(2) == 0 {
                number.to_be_bytes()
            } else {
                number.to_le_bytes()
            };
            let width = [1, 2, 4, 8].get(random.below(4)).copied().unwrap_or(8);
            // The low end of the number, in whichever order.
            let low = if encoded == number.to_be_bytes() {
                encoded.get(8 - width..)
            } else {
                encoded.get(..width)
            };
            for (place, value) in bytes.iter_mut().skip(at).zip(low.unwrap_or_default()) {
                *place = *value;
            }
        }
        3 => {
            let end = (at + 1 + random.below(32)).min(bytes.len());
            bytes.drain(at.min(end)..end);
        }
        4 => {
            let block: Vec<u8> = (0..=random.below(16)).map(|_| random.byte()).collect();
            bytes.splice(at..at, block);
        }
        5 => {
            let end = (at + 1 + random.below(64)).min(bytes.len());
            let block = bytes.get(at..end).unwrap_or_default().to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, block);
        }
        6 => bytes.truncate(at),
        _ => {
            let from = random.below(other.len());
            let end = (from + 1 + random.below(128)).min(other.len());
            let block = other.get(from..end).unwrap_or_default().to_vec();
            let until = (at + block.len()).min(bytes.len());
            bytes.splice(at..until, block);
        }
    }
}

const BOUNDARIES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// More than any format's limit is not needed to reach every refusal.
const MOST_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutation_copes_with_empty_inputs_and_can_be_repeated() {
        let run = |seed| {
            let mut random = Random::new(seed);
            let mut bytes = Vec::new();
            for _ in 0..1000 {
                bytes = mutate(&bytes, b"", &mut random);
                bytes = mutate(&bytes, b"other", &mut random);
            }
            bytes
        };
        assert_eq!(run(7), run(7));
    }
}
