//! All hosts at once.

use std::future::Future;
use std::sync::Arc;

use api_types::wire::{TenantVmDetails, TenantVmList};
use cert_chain::{HostName, VmId};
use futures_util::future::join_all;

use crate::error::HostError;
use crate::host::Host;
use crate::settings::{Settings, SettingsError};

/// A tenant with VMs on hosts.
#[derive(Clone, Debug)]
pub struct Tenant {
    hosts: Vec<Host>,
}

/// What one host answered, or why it did not.
#[derive(Debug)]
pub struct FromHost<T> {
    /// Which host.
    pub host: HostName,
    /// Its answer.
    pub answer: Result<T, HostError>,
}

impl Tenant {
    /// Reads certificates and keys. Connects to nobody.
    pub fn open(settings: &Settings) -> Result<Self, SettingsError> {
        let tls = Arc::new(settings.tls()?);
        let host = |host: &crate::settings::HostSettings| {
            Host::new(host.clone(), Arc::clone(&tls), settings.deadline())
        };
        Ok(Self {
            hosts: settings.hosts().iter().map(host).collect(),
        })
    }

    /// The hosts, in the order of the settings.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The tenant's VMs on each host.
    pub async fn vms(&self) -> Vec<FromHost<TenantVmList>> {
        self.each(Host::vms).await
    }

    /// What each host says of a VM; most will have none of this number.
    pub async fn vm(&self, vm: &VmId) -> Vec<FromHost<Option<TenantVmDetails>>> {
        self.each(|host| host.vm(vm)).await
    }

    /// Asks all hosts at the same time; the answers are in the order of the settings.
    pub(crate) async fn each<'a, T, A>(&'a self, ask: impl Fn(&'a Host) -> A) -> Vec<FromHost<T>>
    where
        A: Future<Output = Result<T, HostError>>,
    {
        let asked = self.hosts.iter().map(|host| {
            let answer = ask(host);
            async move {
                FromHost {
                    host: host.name().clone(),
                    answer: answer.await,
                }
            }
        });
        join_all(asked).await
    }
}
