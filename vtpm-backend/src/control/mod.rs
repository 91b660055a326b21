//! The control channel of the TPM emulator protocol, as QEMU, cloud-hypervisor and libvirt
//! speak it. Numbers and structures: QEMU, `backends/tpm/tpm_ioctl.h`.

mod handler;
mod request;
mod state_export;
mod stream;

pub use handler::{Reply, Vrot, handle};
pub use request::{MAX_BLOB, Request, RequestError};
pub use state_export::{NotCarried, Package, StateExport, SwtpmExport};
pub use stream::RequestStream;
