//! What a guest, a VMM or a manager sends to a vRoT's backend.

use backend_link::frame::encode;
use backend_link::message::{FromBackend, ToBackend};
use vtpm_backend::fuzzing;

use super::Target;

/// Requests on the control channel, and what is answered. The first byte is the size of the pieces
/// that they come in.
pub(super) const CONTROL_CHANNEL: Target = Target {
    name: "control-channel",
    run: fuzzing::control_channel,
    seeds: || {
        // What QEMU 7.2 sends at start, and a migration's last step.
        let requests: [&[u8]; 11] = [
            &[0, 0, 0, 16],
            &[0, 0, 0, 1],
            &[0, 0, 0, 14],
            &[0, 0, 0, 17, 0, 0, 0x0f, 0x80],
            &[0, 0, 0, 2, 0, 0, 0, 0],
            &[0, 0, 0, 5, 0, 0, 0, 0],
            &[0, 0, 0, 11, 3],
            &[0, 0, 0, 7, 0, 0, 0, 2, 1, 2],
            &[0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0],
            &[0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 4, 1, 2, 3, 4],
            &[0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        let in_pieces = |piece, requests: &[&[u8]]| [&[piece][..], &requests.concat()].concat();
        Ok(vec![
            in_pieces(255, &requests),
            in_pieces(3, &requests),
            in_pieces(255, &requests[9..]),
        ])
    },
};

/// A guest's memory with a queue in it. The first byte says which device serves it.
pub(super) const VIRTIO_QUEUE: Target = Target {
    name: "virtio-queue",
    run: |bytes| {
        vhost_user_tpm::fuzzing::queue(bytes);
    },
    seeds: || {
        let command = get_random();
        let length = u32::try_from(command.len())?;
        // A command and room for its response, in the same buffer.
        let direct = [(0x400, length, 1, 1), (0x400, 0x400, 2, 0)];
        let indirect = [(0x200, 32, 4, 0)];
        let memory = |kind, descriptors: &[(u64, u32, u16, u16)]| {
            let mut memory = vec![0; 0x500];
            let mut write = |at: usize, bytes: &[u8]| {
                if let Some(place) = memory.get_mut(at..at + bytes.len()) {
                    place.copy_from_slice(bytes);
                }
            };
            let table = |descriptors: &[(u64, u32, u16, u16)]| -> Vec<u8> {
                let descriptor = |(address, length, flags, next): &(u64, u32, u16, u16)| {
                    [
                        &address.to_le_bytes()[..],
                        &length.to_le_bytes(),
                        &flags.to_le_bytes(),
                        &next.to_le_bytes(),
                    ]
                    .concat()
                };
                descriptors.iter().flat_map(descriptor).collect()
            };
            write(0, &table(descriptors));
            write(0x200, &table(&direct));
            write(0x400, &command);
            // One chain is offered, and one more of the same.
            write(256 + 2, &2_u16.to_le_bytes());
            [&[kind][..], &memory].concat()
        };
        Ok(vec![
            memory(0, &direct),
            memory(2, &indirect),
            // A read of the bus: header, room for one byte and a status.
            memory(1, &[(0x400, 8, 1, 1), (0x410, 2, 2, 0)]),
        ])
    },
};

/// Headers of TPM commands.
pub(super) const COMMAND_HEADER: Target = Target {
    name: "command-header",
    run: fuzzing::command_header,
    seeds: || Ok(vec![get_random()]),
};

/// The vendor commands.
pub(super) const VENDOR_COMMAND: Target = Target {
    name: "vendor-command",
    run: fuzzing::vendor_command,
    seeds: || {
        let request = [
            &[0x80, 1, 0, 0, 0, 44, 0x20, 0, 0x56, 0x52, 0, 32][..],
            &[7; 32],
        ]
        .concat();
        let read = [
            &[0x80, 1, 0, 0, 0, 22, 0x20, 0, 0x56, 0x53][..],
            &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 8, 0],
        ]
        .concat();
        Ok(vec![request, read, get_random()])
    },
};

/// Answers to `TPM2_GetCapability`, which the backend patches.
pub(super) const CAPABILITY: Target = Target {
    name: "capability",
    run: fuzzing::capability,
    seeds: || Ok(vec![capability(2, 0x11f, 4), capability(6, 0x129, 8)]),
};

/// Frames between manager and backend.
pub(super) const MESSAGE: Target = Target {
    name: "message",
    run: fuzzing::message,
    seeds: || {
        let to = [
            encode(&ToBackend::Hello)?,
            encode(&ToBackend::Execute {
                id: 1,
                command: get_random().into(),
            })?,
        ];
        let from = [
            encode(&FromBackend::Attachment {
                attached: true,
                vmms: Some(1),
            })?,
            encode(&FromBackend::StateChanged {
                sequence: 3,
                sealed: vec![9; 64].into(),
            })?,
        ];
        // Without their lengths, which the parser does not see.
        let bodies = to.into_iter().chain(from);
        Ok(bodies
            .map(|frame| frame.iter().skip(4).copied().collect())
            .collect())
    },
};

fn get_random() -> Vec<u8> {
    vec![0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8]
}

/// A query and an answer of two entries.
fn capability(capability: u8, property: u32, entry: usize) -> Vec<u8> {
    let mut query = vec![0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, capability];
    query.extend(property.to_be_bytes());
    query.extend(254u32.to_be_bytes());
    let size = u8::try_from(19 + 2 * entry).unwrap_or(0);
    query.extend([0x80, 1, 0, 0, 0, size, 0, 0, 0, 0, 0, 0, 0, 0, capability]);
    query.extend([0, 0, 0, 2]);
    query.extend(property.to_be_bytes().iter().cycle().take(2 * entry));
    query
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use tpm_wire::Command;
    use vtpm_backend::host_commands::VendorCommand;

    use super::*;

    #[test]
    fn the_vendor_commands_among_the_seeds_are_well_formed() -> Result<()> {
        let seeds = (VENDOR_COMMAND.seeds)()?;
        let well_formed = seeds
            .iter()
            .filter_map(|seed| VendorCommand::parse(&Command::parse(seed).ok()?))
            .filter(Result::is_ok)
            .count();
        assert_eq!(well_formed, 2);
        Ok(())
    }
}
