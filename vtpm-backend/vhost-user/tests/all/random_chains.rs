//! Queues full of whatever a guest may write there.

use vhost_user_tpm::fuzzing::queue;

/// As many requests as this are served.
const REQUESTS: usize = 1_000_000;
/// The rings and a table of descriptors, and something for them to point to.
const WRITTEN: usize = 1024;

/// Nothing of what a guest writes brings the device down, or has it do what it was not asked for.
#[test]
fn a_million_random_chains_are_given_back_one_by_one() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut served = 0;
    let mut bytes = [0; 1 + WRITTEN];
    while served < REQUESTS {
        for part in bytes.chunks_mut(8) {
            let word = random().to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
        // Descriptors that lead somewhere: near addresses, lengths and numbers.
        for descriptor in bytes[1..257].chunks_mut(16) {
            descriptor[2..8].fill(0);
            descriptor[1] &= 0x1f;
            descriptor[9] &= 0x01;
            descriptor[10..12].fill(0);
            descriptor[12] &= 0x07;
            descriptor[13] = 0;
            descriptor[14] &= 0x1f;
            descriptor[15] = 0;
        }
        // Sixteen chains are offered, which begin anywhere, and none was used before.
        bytes[257..261].copy_from_slice(&[0, 0, 16, 0]);
        for head in bytes[261..293].chunks_mut(2) {
            head[0] &= 0x0f;
            head[1] = 0;
        }
        bytes[305..309].fill(0);
        served += queue(&bytes);
    }
}
