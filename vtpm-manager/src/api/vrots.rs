//! vRoTs: create, start, stop, show, delete.

use std::sync::Arc;

use api_types::wire::{
    BackendView, CertificateState, CreateRequest, IdentityView, ImportRequest, KeyView,
    QemuArguments, StartRequest, StateLossView, TpmDeviceModel, TpmTransport, VrotList, VrotView,
};
use api_types::{PROBLEM_JSON, Problem};
use api_types::{Timestamp, VrotKey};
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use backend_link::transport::Transport;
use cert_chain::{PublicArea, Validity, VmId, pem};
use launch_measurement::Files;
use minicbor::bytes::ByteVec;
use serde::Deserialize;
use utoipa::IntoParams;
use zeroize::Zeroizing;

use super::launch::{self, measured};
use super::order::transition;
use super::problem::{Body, OptionalBody, Path, ProblemResponse, Query};
use crate::manager::{Launch, Manager, ManagerError, Order, Vrot};
use crate::vrot::{Lifecycle, Origin, Pending, StopCause};

pub(super) type Managed = State<Arc<Manager>>;

/// Lists all vRoTs.
#[utoipa::path(get, path = "/v1/vrots", tag = "vrots",
    responses((status = 200, body = VrotList),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn list(State(manager): Managed) -> Json<VrotList> {
    let vrots = manager.fleet().registry().all();
    Json(VrotList {
        vrots: vrots.iter().map(|vrot| view(&manager, vrot)).collect(),
    })
}

/// Gives a VM a vRoT: keys, certificates, state. Takes milliseconds if one is ready, else
/// seconds.
#[utoipa::path(post, path = "/v1/vrots", tag = "vrots", request_body = CreateRequest,
    responses((status = 201, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn create(
    State(manager): Managed,
    Extension(files): Extension<Files>,
    Body(request): Body<CreateRequest>,
) -> Result<(StatusCode, Json<VrotView>), ProblemResponse> {
    let name = request.name.as_deref().map(str::parse).transpose();
    let measured = match request.launch {
        Some(launch) => Some(measured(&manager, launch, &files).await?),
        None => None,
    };
    let order = Order {
        vm: request.vm,
        tenant: request.tenant,
        name: name.map_err(|error| ProblemResponse::bad_request(format!("name: {error}")))?,
        launch: if request.start {
            Launch::Now
        } else {
            Launch::Later
        },
        folder: None,
        requires_launch: request.require_launch_measurement,
        measured,
        transport: match request.transport {
            TpmTransport::Emulator => Transport::Emulator,
            TpmTransport::VirtioTpm => Transport::VirtioTpm,
            TpmTransport::VirtioI2c => Transport::VirtioI2c,
        },
    };
    let created = transition(&manager, |manager| async move {
        manager.fleet().create(order).await
    });
    let vrot = created.await?;
    Ok((StatusCode::CREATED, Json(view(&manager, &vrot))))
}

/// Gives a VM a vRoT that is the TPM that it had elsewhere, with all that is in it: endorsement seed, NV
/// memory, persistent keys. vIK, TLS key and certificates are made in it.
#[utoipa::path(post, path = "/v1/vrots/import", tag = "vrots", request_body = ImportRequest,
    responses((status = 201, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn import(
    State(manager): Managed,
    Body(request): Body<ImportRequest>,
) -> Result<(StatusCode, Json<VrotView>), ProblemResponse> {
    let name = request.name.as_deref().map(str::parse).transpose();
    let order = Order {
        vm: Some(request.vm),
        tenant: request.tenant.clone(),
        name: name.map_err(|error| ProblemResponse::bad_request(format!("name: {error}")))?,
        launch: Launch::Later,
        folder: None,
        requires_launch: false,
        measured: None,
        transport: Transport::Emulator,
    };
    // What the digits are would be told by the error.
    let state = hex::decode(request.state.expose()).map(Zeroizing::new);
    let state = state.map_err(|_| ProblemResponse::bad_request("state: no hexadecimal digits"))?;
    drop(request);
    let imported = transition(&manager, |manager| async move {
        manager.fleet().import(order, state).await
    });
    let vrot = imported.await?;
    Ok((StatusCode::CREATED, Json(view(&manager, &vrot))))
}

/// Shows one vRoT.
#[utoipa::path(get, path = "/v1/vrots/{id}", tag = "vrots", params(Id),
    responses((status = 200, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn show(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<VrotView>, ProblemResponse> {
    let vrot = manager.fleet().find(key(&id)?)?;
    Ok(Json(view(&manager, &vrot)))
}

/// Deletes a vRoT for good: its key is destroyed first, then its state.
#[utoipa::path(delete, path = "/v1/vrots/{id}", tag = "vrots", params(Id),
    responses((status = 204), (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn delete(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<StatusCode, ProblemResponse> {
    let key = key(&id)?;
    transition(&manager, move |manager| async move {
        manager.fleet().delete(key).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a vRoT. When this returns, a VMM can attach. The body may be left out; files that it names
/// come along as descriptors.
#[utoipa::path(post, path = "/v1/vrots/{id}/start", tag = "vrots", params(Id),
    request_body = StartRequest,
    responses((status = 200, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn start(
    State(manager): Managed,
    Extension(files): Extension<Files>,
    Path(id): Path<String>,
    OptionalBody(request): OptionalBody<StartRequest>,
) -> Result<Json<VrotView>, ProblemResponse> {
    let key = key(&id)?;
    let launch = match request.and_then(|request| request.launch) {
        Some(launch) => {
            manager.fleet().check_measurable(key)?;
            Some(measured(&manager, launch, &files).await?)
        }
        None => None,
    };
    let started = transition(&manager, move |manager| async move {
        match launch {
            Some(launch) => manager.fleet().start_measured(key, launch).await,
            None => manager.fleet().start(key).await,
        }
    });
    let vrot = started.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Stops a vRoT. When this returns, its state is durable.
#[utoipa::path(post, path = "/v1/vrots/{id}/stop", tag = "vrots", params(Id),
    responses((status = 200, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn stop(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<VrotView>, ProblemResponse> {
    let key = key(&id)?;
    let stopped = transition(&manager, move |manager| async move {
        manager.fleet().stop(key).await
    });
    let vrot = stopped.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Stops a vRoT and keeps its volatile state. When this returns, all of it is durable. The VM
/// must be paused.
#[utoipa::path(post, path = "/v1/vrots/{id}/suspend", tag = "vrots", params(Id),
    responses((status = 200, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn suspend(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<VrotView>, ProblemResponse> {
    let key = key(&id)?;
    let suspended = transition(&manager, move |manager| async move {
        manager.fleet().suspend(key).await
    });
    let vrot = suspended.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Starts a suspended vRoT as it was. When this returns, a VMM can attach.
#[utoipa::path(post, path = "/v1/vrots/{id}/resume", tag = "vrots", params(Id),
    responses((status = 200, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn resume(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<VrotView>, ProblemResponse> {
    let key = key(&id)?;
    let resumed = transition(&manager, move |manager| async move {
        manager.fleet().resume(key).await
    });
    let vrot = resumed.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Has the next folder with the right `vrot.json` be the vRoT's: the folder was restored from a
/// backup, and no other is left.
#[utoipa::path(post, path = "/v1/vrots/{id}/folder", tag = "vrots", params(Id),
    responses((status = 200, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn accept_folder(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<VrotView>, ProblemResponse> {
    let key = key(&id)?;
    let accepted = transition(&manager, move |manager| async move {
        manager.fleet().accept_folder(key).await
    });
    let vrot = accepted.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Resets the TPM of a running VM whose platform was reset, for transports by which no VMM can say
/// so. Its PCRs are as at a start afterwards.
#[utoipa::path(post, path = "/v1/vrots/{id}/reset", tag = "vrots", params(Id),
    responses((status = 200, body = VrotView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn reset(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<VrotView>, ProblemResponse> {
    let key = key(&id)?;
    let reset = transition(&manager, move |manager| async move {
        manager.fleet().reset(key).await
    });
    let vrot = reset.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Keys and certificates of a vRoT, by its own number or its VM's.
#[utoipa::path(get, path = "/v1/vrots/{id}/identity", tag = "vrots", params(Id),
    responses((status = 200, body = IdentityView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn identity(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<IdentityView>, ProblemResponse> {
    let vrot = manager.fleet().find(key(&id)?)?;
    identity_view(&manager, &vrot).map(Json).map_err(Into::into)
}

/// Renews a vRoT's certificates now, before they are due: beside its guest where it runs, and else
/// at its next start.
#[utoipa::path(post, path = "/v1/vrots/{id}/identity", tag = "vrots", params(Id),
    responses((status = 200, body = IdentityView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn renew_identity(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<IdentityView>, ProblemResponse> {
    let key = key(&id)?;
    let renewed = transition(&manager, move |manager| async move {
        manager.fleet().renew_now(key).await
    });
    let vrot = renewed.await?;
    identity_view(&manager, &vrot).map(Json).map_err(Into::into)
}

/// Arguments that attach a vRoT to QEMU.
#[utoipa::path(get, path = "/v1/vrots/{id}/qemu-args", tag = "vrots", params(Id, Device),
    responses((status = 200, body = QemuArguments),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn qemu_arguments(
    State(manager): Managed,
    Path(id): Path<String>,
    Query(device): Query<Device>,
) -> Result<Json<QemuArguments>, ProblemResponse> {
    let record = manager.fleet().find(key(&id)?)?.record();
    let socket = manager
        .fleet()
        .folder(record.vrot)
        .vmm_socket(record.transport);
    // A comma in a value is written twice (qemu(1), "-chardev").
    let path = socket.display().to_string().replace(',', ",,");
    let arguments = match record.transport {
        Transport::Emulator => vec![
            "-chardev".to_owned(),
            format!("socket,id=chrtpm,path={path}"),
            "-tpmdev".to_owned(),
            "emulator,id=tpm0,chardev=chrtpm".to_owned(),
            "-device".to_owned(),
            format!("{},tpmdev=tpm0", device.device.name()),
        ],
        // How much memory the VM has is its launcher's to say, with `share=on`; so is the ACPI table,
        // which is for this slot. Without `reconnect`: QEMU 7.2 makes no such device while a socket
        // with it is not connected, and 10.0 fails when it connects again.
        Transport::VirtioI2c => vec![
            "-chardev".to_owned(),
            format!("socket,id=chrtpm,path={path}"),
            "-device".to_owned(),
            "vhost-user-i2c-pci,chardev=chrtpm,addr=0x10".to_owned(),
        ],
        Transport::VirtioTpm => {
            return Err(ProblemResponse::new(
                StatusCode::CONFLICT,
                "no-qemu-device",
                format!(
                    "QEMU has no device for virtio-tpm; crosvm: `--vhost-user tpm,socket={}`; \
                 cloud-hypervisor from 52.0 on: `--generic-vhost-user \
                 socket={0},device_type=62,queue_sizes=[2]` with `--memory shared=on`",
                    socket.display()
                ),
            ));
        }
    };
    Ok(Json(QemuArguments { arguments }))
}

/// Which vRoT.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes the path to clients")]
pub(super) struct Id {
    /// Number of the vRoT, or of the VM it belongs to.
    #[param(format = Uuid)]
    id: String,
}

/// Which VM.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes the path to clients")]
pub(super) struct Vm {
    /// Its number.
    #[param(format = Uuid)]
    vm: String,
}

/// How the guest is to see its TPM.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    /// Interface of the TPM.
    #[serde(default)]
    #[param(inline)]
    device: TpmDeviceModel,
}

pub(super) fn key(id: &str) -> Result<VrotKey, ProblemResponse> {
    id.parse()
        .map_err(|error| ProblemResponse::bad_request(format!("{error}")))
}

pub(super) fn vm(id: &str) -> Result<VmId, ProblemResponse> {
    id.parse()
        .map_err(|error| ProblemResponse::bad_request(format!("{error}")))
}

fn view(manager: &Manager, vrot: &Vrot) -> VrotView {
    let record = vrot.record();
    let folder = manager.fleet().folder(record.vrot);
    VrotView {
        vrot: record.vrot,
        vm: record.vm,
        tenant: record.tenant.clone(),
        name: record.name.as_ref().map(ToString::to_string),
        generation: record.generation,
        transport: match record.transport {
            Transport::Emulator => TpmTransport::Emulator,
            Transport::VirtioTpm => TpmTransport::VirtioTpm,
            Transport::VirtioI2c => TpmTransport::VirtioI2c,
        },
        state: record.lifecycle.name().to_owned(),
        since: record.lifecycle.since(),
        note: match record.lifecycle {
            Lifecycle::Stopped {
                cause: StopCause::BackendEnded,
                ..
            } => Some("its backend ended by itself".to_owned()),
            _ => vrot.note().map(str::to_owned),
        },
        imported: record.origin == Some(Origin::Imported),
        state_loss: record.state_loss.map(|loss| StateLossView {
            batch: loss.batch,
            at: loss.at,
        }),
        vik: record.identity.vik(record.vrot).map(|vik| vik.name()).ok(),
        vik_certificate: certificate_state(record.identity.pending() != Some(Pending::Vik)),
        tls_certificate: (record.identity.is_tls_key_certified()).map(certificate_state),
        ek_certificates: certificate_state(record.identity.has_ek_certificates()),
        vik_not_after: vrot.vik_not_after(),
        renewal_problem: manager.certification().problem(record.vrot),
        launch: launch::view(manager, vrot),
        backend: vrot.observed().map(|observed| BackendView {
            process: observed.process,
            control: folder.vmm_socket(record.transport),
            attached: observed.attached,
            degraded: observed.degraded,
        }),
    }
}

/// Keys and certificates of a vRoT.
pub(crate) fn identity_view(manager: &Manager, vrot: &Vrot) -> Result<IdentityView, ManagerError> {
    let record = vrot.record();
    let (id, identity) = (record.vrot, &record.identity);
    Ok(IdentityView {
        vrot: id,
        vm: record.vm,
        tenant: record.tenant.clone(),
        generation: record.generation,
        host: manager
            .host()
            .enrolment()
            .map(|enrolment| enrolment.host().clone()),
        vik: key_view(
            identity.vik(id)?.public_area(),
            identity.vik_certificate.as_ref(),
        ),
        tls: identity.tls_key(id)?.map(|key| {
            let certificate = identity.tls_certificate.as_ref();
            key_view(key.public_area(), certificate)
        }),
        ek_rsa: key_view(
            identity.ek_rsa(id)?.public_area(),
            identity.ek_rsa_certificate.as_ref(),
        ),
        ek_p256: key_view(
            identity.ek_p256(id)?.public_area(),
            identity.ek_p256_certificate.as_ref(),
        ),
        manager_digest: identity.manager,
        backend_digest: identity.backend,
        chain_pem: pem::encode_certificate(&identity.host_certificate),
    })
}

fn key_view(area: &PublicArea, certificate: Option<&ByteVec>) -> KeyView {
    KeyView {
        name: area.name(),
        public_key_pem: pem::encode_public_key(&area.subject_public_key_info()),
        public_area: hex::encode(area.as_bytes()),
        state: certificate_state(certificate.is_some()),
        certificate_pem: certificate.map(|der| pem::encode_certificate(der)),
        not_after: certificate.and_then(|der| not_after(der)),
    }
}

fn certificate_state(is_issued: bool) -> CertificateState {
    match is_issued {
        true => CertificateState::Issued,
        false => CertificateState::Pending,
    }
}

fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let validity = Validity::of_certificate(certificate).ok()?;
    Some(Timestamp::new(validity.not_after().as_secs()))
}
