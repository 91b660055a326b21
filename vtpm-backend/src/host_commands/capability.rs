//! `TPM2_GetCapability` with our commands in it (TPM 2.0 Part 3 §30.2).
//!
//! The kernel reads `TPM_PT_TOTAL_COMMANDS`, then that many entries of `TPM_CAP_COMMANDS`, and
//! takes the TPM for broken if it gets another number: both are patched, or neither.

use tpm_wire::host_commands::{HOST_EVIDENCE_READ, HOST_EVIDENCE_REQUEST, VENDOR};
use tpm_wire::{Command, Response, ResponseCode, response};

/// `TPM_CC_GetCapability`
const GET_CAPABILITY: u32 = 0x0000_017a;
/// `TPM_CAP_COMMANDS`
const CAP_COMMANDS: u32 = 2;
/// `TPM_CAP_TPM_PROPERTIES`
const CAP_PROPERTIES: u32 = 6;
/// `TPM_PT_TOTAL_COMMANDS`
const TOTAL_COMMANDS: u32 = 0x129;
/// `TPM_PT_LIBRARY_COMMANDS` comes after it and stays; `TPM_PT_VENDOR_COMMANDS` is ours alone.
const VENDOR_COMMANDS: u32 = 0x12b;
/// `TPMA_CC.V` and the index: no handles, no flags, as the codes themselves.
const OURS: [u32; 4] = [
    HOST_EVIDENCE_REQUEST & !VENDOR,
    HOST_EVIDENCE_READ & !VENDOR,
    HOST_EVIDENCE_REQUEST,
    HOST_EVIDENCE_READ,
];
/// `MAX_CAP_CC`: entries that fit a `TPMS_CAPABILITY_DATA` of 1,024 bytes.
const MAX_ENTRIES: usize = 254;

/// What a caller asks `TPM2_GetCapability` for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    capability: u32,
    property: u32,
    count: u32,
}

impl Query {
    /// Reads the query, if the command is one and well formed.
    pub fn parse(command: &Command<'_>) -> Option<Self> {
        if command.code() != GET_CAPABILITY || !command.is_without_sessions() {
            return None;
        }
        let (capability, rest) = command.parameters().split_first_chunk()?;
        let (property, count) = rest.split_first_chunk()?;
        Some(Self {
            capability: u32::from_be_bytes(*capability),
            property: u32::from_be_bytes(*property),
            count: u32::from_be_bytes(count.try_into().ok()?),
        })
    }

    /// Adds our commands to the engine's answer.
    pub fn patch(&self, answer: Vec<u8>) -> Vec<u8> {
        let patched = match self.capability {
            CAP_COMMANDS => self.patch_commands(&answer),
            CAP_PROPERTIES => patch_properties(&answer),
            _ => None,
        };
        patched.unwrap_or(answer)
    }

    /// Ours come last, because they have the highest codes.
    fn patch_commands(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let list = List::parse(answer, CAP_COMMANDS, 4)?;
        if list.more {
            return None;
        }
        let mut entries = list.entries.to_vec();
        let room = usize::try_from(self.count)
            .unwrap_or(usize::MAX)
            .min(MAX_ENTRIES);
        let mut more = false;
        for code in OURS {
            if code < self.property {
                continue;
            }
            if entries.len() / 4 < room {
                entries.extend(code.to_be_bytes());
            } else {
                more = true;
            }
        }
        Some(list_response(more, CAP_COMMANDS, 4, &entries))
    }
}

fn patch_properties(answer: &[u8]) -> Option<Vec<u8>> {
    let list = List::parse(answer, CAP_PROPERTIES, 8)?;
    let mut entries = list.entries.to_vec();
    for entry in entries.chunks_exact_mut(8) {
        if let [p0, p1, p2, p3, value @ ..] = entry
            && matches!(
                u32::from_be_bytes([*p0, *p1, *p2, *p3]),
                TOTAL_COMMANDS | VENDOR_COMMANDS
            )
            && let Ok(number) = <[u8; 4]>::try_from(&*value)
        {
            let ours = u32::try_from(OURS.len()).unwrap_or(0);
            let number = u32::from_be_bytes(number).saturating_add(ours);
            value.copy_from_slice(&number.to_be_bytes());
        }
    }
    Some(list_response(list.more, CAP_PROPERTIES, 8, &entries))
}

/// A successful answer: `moreData`, capability, and a counted list.
struct List<'b> {
    more: bool,
    entries: &'b [u8],
}

impl<'b> List<'b> {
    fn parse(answer: &'b [u8], expected: u32, entry: usize) -> Option<Self> {
        let answer = Response::parse(answer).filter(|answer| answer.code().is_success())?;
        let (more, rest) = answer.body().split_first()?;
        let (capability, rest) = rest.split_first_chunk()?;
        let (count, entries) = rest.split_first_chunk()?;
        let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
        (u32::from_be_bytes(*capability) == expected
            && entries.len() == count.checked_mul(entry)?)
        .then_some(Self {
            more: *more != 0,
            entries,
        })
    }
}

fn list_response(more: bool, capability: u32, entry: usize, entries: &[u8]) -> Vec<u8> {
    let count = u32::try_from(entries.len() / entry).unwrap_or(u32::MAX);
    let parameters = [
        [u8::from(more)].as_slice(),
        &capability.to_be_bytes(),
        &count.to_be_bytes(),
        entries,
    ]
    .concat();
    response(ResponseCode::SUCCESS, &parameters)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn commands(entries: &[u32], more: bool) -> Vec<u8> {
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
        list_response(more, CAP_COMMANDS, 4, &bytes)
    }

    fn ask(property: u32, count: u32, answer: Vec<u8>) -> Vec<u8> {
        let query = Query {
            capability: CAP_COMMANDS,
            property,
            count,
        };
        query.patch(answer)
    }

    #[test]
    fn our_commands_follow_the_engines() {
        assert_eq!(
            ask(0x11f, 254, commands(&[0x11f, 0x197], false)),
            commands(&[0x11f, 0x197, OURS[0], OURS[1], OURS[2], OURS[3]], false)
        );
    }

    #[test]
    fn a_caller_with_little_room_is_told_that_there_is_more() {
        assert_eq!(
            ask(0x197, 1, commands(&[0x197], false)),
            commands(&[0x197], true)
        );
        assert_eq!(
            ask(0x197, 2, commands(&[0x197], false)),
            commands(&[0x197, OURS[0]], true)
        );
        let unfinished = commands(&[0x11f], true);
        assert_eq!(ask(0x11f, 1, unfinished.clone()), unfinished);
    }

    #[test]
    fn a_caller_can_start_at_our_commands() {
        assert_eq!(
            ask(OURS[3], 8, commands(&[], false)),
            commands(&[OURS[3]], false)
        );
        assert_eq!(
            ask(OURS[3] + 1, 8, commands(&[], false)),
            commands(&[], false)
        );
    }

    #[test]
    fn the_number_of_commands_rises_with_the_list() {
        let entries: Vec<u8> = [TOTAL_COMMANDS, 110, 0x12a, 110, VENDOR_COMMANDS, 0]
            .iter()
            .flat_map(|n: &u32| n.to_be_bytes())
            .collect();
        let query = Query {
            capability: CAP_PROPERTIES,
            property: TOTAL_COMMANDS,
            count: 3,
        };
        let patched = query.patch(list_response(false, CAP_PROPERTIES, 8, &entries));
        let list = List::parse(&patched, CAP_PROPERTIES, 8).unwrap();
        assert_eq!(list.entries.get(4..8), Some([0, 0, 0, 114].as_slice()));
        assert_eq!(list.entries.get(12..16), Some([0, 0, 0, 110].as_slice()));
        assert_eq!(list.entries.get(20..24), Some([0, 0, 0, 4].as_slice()));
    }

    #[test]
    fn a_refusal_or_a_malformed_answer_stays_as_it_is() {
        let refusal = ResponseCode::FAILURE.response();
        assert_eq!(ask(0x11f, 254, refusal.clone()), refusal);
        let mut odd = commands(&[0x11f], false);
        odd.pop();
        assert_eq!(ask(0x11f, 254, odd.clone()), odd);
    }
}
