//! The two commands of a vRoT that reach its host. The guest needs neither a network nor an agent
//! for them.
//!
//! | Command | Code | Parameters | Answer |
//! |---|---|---|---|
//! | HOST_EVIDENCE_REQUEST | `0x20005652` | `TPM2B_DIGEST` request | `UINT64` ticket |
//! | HOST_EVIDENCE_READ | `0x20005653` | `UINT64` ticket, `UINT32` offset | `UINT32` total size, `TPM2B` chunk |
//!
//! Linux 6.1 (`tpm2_find_cc`) finds commands by the lower half of their codes alone, and would
//! never find a vendor's. So both are also known without the vendor bit, as `0x5652` and `0x5653`:
//! the TCG assigns nothing near.
//!
//! Neither has sessions. Neither has handles, because the kernel's resource manager demands long
//! commands of those that do. Neither blocks, because a VMM may give up on a TPM after a tenth of a
//! second: READ answers `TPM_RC_RETRY` until the host is done, and while a further part is fetched;
//! `TPM_RC_NO_RESULT` if there will be no answer; `TPM_RC_VALUE` of parameter 1 for an unknown
//! ticket, and of parameter 2 for an offset behind the end.

/// `TPMA_CC.V`: a vendor's command.
pub const VENDOR: u32 = 0x2000_0000;
/// `HOST_EVIDENCE_REQUEST`
pub const HOST_EVIDENCE_REQUEST: u32 = 0x2000_5652;
/// `HOST_EVIDENCE_READ`
pub const HOST_EVIDENCE_READ: u32 = 0x2000_5653;
