//! Certificates and revocation lists that end, and the clock by which they do.

use std::time::{SystemTime, UNIX_EPOCH};

use bounded_file::read_bounded;
use cert_chain::crl::{Crl, MAX_CRL_FILE};
use printable::WithCauses;

use super::Examination;
use super::finding::{Check, Finding};

const DAY: u64 = 24 * 60 * 60;
/// Before a host's certificate ends: enough for four messages that travel as files.
const SOON: u64 = 30 * DAY;
/// Before a revocation list ends.
const LIST_SOON: u64 = DAY;

pub(crate) fn check(examined: &Examination<'_>, findings: &mut Vec<Finding>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    host(examined, now, &mut Check::new("certificate", findings));
    for path in examined.revocation_lists {
        let mut check = Check::new("revocation-list", findings);
        let shown = path.display();
        let anew = "`vtpmctl issuer crl` makes another one; replace the file with it";
        let lists = match read_bounded(path, MAX_CRL_FILE) {
            Ok(file) => Crl::all_from_file(&file),
            Err(error) => {
                check.failed(format!("`{shown}` cannot be read: {error}"), anew);
                continue;
            }
        };
        match lists {
            Err(error) => check.failed(format!("`{shown}`: {}", WithCauses(&error)), anew),
            Ok(lists) => {
                for list in lists {
                    let (made, ends) = (list.this_update().as_secs(), list.next_update().as_secs());
                    let what = format!("list {} in `{shown}`", list.number());
                    if made > now {
                        check.failed(
                            format!("{what} is from the future"),
                            "set the clock of this host, or of the issuer",
                        );
                    } else if ends < now {
                        check.failed(format!("{what} ended {}", ago(now - ends)), anew);
                    } else if ends - now < LIST_SOON {
                        check.warning(format!("{what} ends {}", ahead(ends - now)), anew);
                    } else {
                        check.ok(format!(
                            "{what} was made {}, ends {}",
                            ago(now - made),
                            ahead(ends - now)
                        ));
                    }
                }
            }
        }
    }
}

fn host(examined: &Examination<'_>, now: u64, check: &mut Check<'_>) {
    let Ok(host) = &examined.manager.host else {
        return;
    };
    let enrol = "`vtpmctl host enrol`, or its four messages by hand: request, challenge, answer, certificate";
    let Some(enrolment) = &host.enrolment else {
        if host.store.state != "opening" {
            check.failed(
                "the host is not enrolled: none of its VMs can attest",
                enrol,
            );
        }
        return;
    };
    let (begins, ends) = (
        enrolment.not_before.seconds(),
        enrolment.not_after.seconds(),
    );
    let name = &enrolment.host;
    if now < begins {
        check.failed(
            format!(
                "{name}'s certificate begins {}: the clock is wrong here or at the issuer",
                ahead(begins - now)
            ),
            "set the clock (`timedatectl`)",
        );
    } else if ends < now {
        check.failed(
            format!("{name}'s certificate ended {}", ago(now - ends)),
            enrol,
        );
    } else if ends - now < SOON {
        check.warning(
            format!("{name}'s certificate ends {}", ahead(ends - now)),
            enrol,
        );
    } else {
        check.ok(format!("{name}, ends {}", ahead(ends - now)));
    }
}

fn ago(seconds: u64) -> String {
    format!("{} ago", long(seconds))
}

fn ahead(seconds: u64) -> String {
    format!("in {}", long(seconds))
}

fn long(seconds: u64) -> String {
    match (seconds / DAY, seconds / 3600) {
        (0, 0) => format!("{} min", seconds / 60),
        (0, hours) => format!("{hours} h"),
        (days, _) => format!("{days} days"),
    }
}
