//! Requests to one host: each on a connection of its own, with bounded answers and one deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api_types::wire::{TenantEvidenceRequest, TenantVmDetails, TenantVmList};
use api_types::{OPENING, Problem};
use attestation::Nonce;
use attestation::evidence_set::MAX_EVIDENCE_SET;
use cert_chain::{HostName, VmId};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::error::HostError;
use crate::settings::HostSettings;
use crate::tls::Tls;

/// One host, as this tenant sees it.
#[derive(Clone, Debug)]
pub struct Host {
    settings: HostSettings,
    tls: Arc<Tls>,
    deadline: Duration,
}

/// An answer whose body is yet to come, and the connection that it comes by.
pub(crate) struct Answer {
    pub(crate) body: Incoming,
    /// Ends with this.
    pub(crate) _connection: AbortOnDropHandle<()>,
}

const VMS: &str = "/v1/vms";
const EVIDENCE: &str = "/v1/evidence";
/// A list of ten thousand VMs has some 5 MB.
const MAX_LIST: usize = 32 * 1024 * 1024;
/// Certificates of one VM, its host and its issuer.
const MAX_DETAILS: usize = 1024 * 1024;
const MAX_PROBLEM: usize = 64 * 1024;
/// For a line of status and headers together.
const MAX_HEAD: usize = 64 * 1024;
/// Between two attempts at a host that asks for patience.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Host {
    pub(crate) fn new(settings: HostSettings, tls: Arc<Tls>, deadline: Duration) -> Self {
        Self {
            settings,
            tls,
            deadline,
        }
    }

    /// Its name.
    pub fn name(&self) -> &HostName {
        &self.settings.name
    }

    /// The tenant's VMs on it.
    pub async fn vms(&self) -> Result<TenantVmList, HostError> {
        let list = self.whole(Method::GET, VMS, Bytes::new(), MAX_LIST).await?;
        parse("a list of VMs", &list)
    }

    /// One VM; none, if the tenant has no such VM on this host.
    pub async fn vm(&self, vm: &VmId) -> Result<Option<TenantVmDetails>, HostError> {
        let path = format!("{VMS}/{vm}");
        match self
            .whole(Method::GET, &path, Bytes::new(), MAX_DETAILS)
            .await
        {
            Ok(details) => {
                let details: TenantVmDetails = parse("what is known of a VM", &details)?;
                if details.vm.vm == *vm {
                    return Ok(Some(details));
                }
                Err(HostError::Answer {
                    expected: "of the VM that was asked for",
                    reason: format!("it is of {}", details.vm.vm),
                })
            }
            Err(HostError::Refused(problem)) if problem.status == StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An evidence set as it came, of these VMs, or of all that the tenant has on this host. Nothing of it
    /// is verified.
    pub async fn evidence(
        &self,
        nonce: &Nonce,
        vms: Option<&[VmId]>,
    ) -> Result<Vec<u8>, HostError> {
        let request = TenantEvidenceRequest {
            nonce: nonce.to_string(),
            vms: vms.map(<[VmId]>::to_vec),
        };
        let body = serde_json::to_vec(&request)
            .map_err(|error| HostError::of_json("a request", &error))?;
        self.whole(Method::POST, EVIDENCE, body.into(), MAX_EVIDENCE_SET)
            .await
    }

    /// A whole answer. A host that asks for patience is asked again while the deadline lasts.
    async fn whole(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<Vec<u8>, HostError> {
        let attempts = async {
            loop {
                let answer = match self.request(method.clone(), path, body.clone()).await? {
                    Ok(answer) => answer,
                    Err(Refusal {
                        pause: Some(pause), ..
                    }) => {
                        sleep(pause).await;
                        continue;
                    }
                    Err(Refusal { problem, .. }) => return Err(HostError::Refused(problem)),
                };
                return collected(answer.body, limit).await;
            }
        };
        self.within_deadline(attempts).await
    }

    /// The beginning of an answer that has no end.
    pub(crate) async fn stream(&self, path: &str) -> Result<Answer, HostError> {
        let answer = async {
            let answer = self.request(Method::GET, path, Bytes::new()).await?;
            answer.map_err(|refusal| HostError::Refused(refusal.problem))
        };
        self.within_deadline(answer).await
    }

    async fn within_deadline<T>(
        &self,
        asking: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        let answered = timeout(self.deadline, asking).await;
        answered.unwrap_or(Err(HostError::Deadline(self.deadline)))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Result<Answer, Refusal>, HostError> {
        let HostSettings {
            address, server, ..
        } = &self.settings;
        let stream = self.tls.connect(address, server).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(HostError::of_http)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // What goes wrong shows in the answer.
            connection.await.ok();
        }));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, server.to_str().as_ref())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| HostError::Setup(error.to_string()))?;
        let response: Response<Incoming> =
            (sender.send_request(request).await).map_err(HostError::of_http)?;
        let (head, body) = response.into_parts();
        if head.status == StatusCode::OK {
            return Ok(Ok(Answer {
                body,
                _connection: connection,
            }));
        }
        let problem = collected(body, MAX_PROBLEM).await?;
        let problem = serde_json::from_slice(&problem).unwrap_or_else(|_| {
            // A server in between, or none of this API.
            Problem::new(head.status.as_u16(), "", "unknown", "it does not say why")
        });
        Ok(Err(Refusal::new(head.status, &head.headers, problem)))
    }
}

/// A request that was answered with an error.
struct Refusal {
    problem: Problem,
    /// When to ask again, if that may help.
    pause: Option<Duration>,
}

impl Refusal {
    /// What HTTP says counts, not what the body says of it.
    fn new(status: StatusCode, headers: &HeaderMap, problem: Problem) -> Self {
        let is_opening = status == StatusCode::SERVICE_UNAVAILABLE && problem.code() == OPENING;
        let after = headers.get(header::RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
        let after = after.map_or(PAUSE, Duration::from_secs);
        let pause = (is_opening || status == StatusCode::TOO_MANY_REQUESTS)
            .then_some(after.clamp(PAUSE, LONGEST_PAUSE));
        let problem = Problem {
            status: status.as_u16(),
            ..problem
        };
        Self { problem, pause }
    }
}

async fn collected(body: Incoming, limit: usize) -> Result<Vec<u8>, HostError> {
    let body = Limited::new(body, limit).collect().await;
    let body = body.map_err(|error| HostError::of_body(error, limit))?;
    Ok(body.to_bytes().to_vec())
}

pub(crate) fn parse<T: DeserializeOwned>(
    expected: &'static str,
    json: &[u8],
) -> Result<T, HostError> {
    serde_json::from_slice(json).map_err(|error| HostError::of_json(expected, &error))
}
