//! What follows when a backend's connection is over. That is not its end: a backend that could
//! not tell its manager something in time gives the connection up and goes on serving its guest.

use std::future::pending;

use backend_link::message::ToBackend;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use super::saving::attempt;
use super::{Supervisor, far_future};
use crate::connection::{Found, introduced};
use crate::order::{Ended, Ending, Observed, Order, Role, STOP_DEADLINE};

/// What became of a backend whose connection was over.
pub(super) enum After {
    /// It is there again.
    Regained,
    /// The last handle is gone.
    Released,
    /// It has ended.
    Ended {
        /// How, in words.
        status: String,
    },
}

/// What became of the states that a backend had pushed when it ended.
enum Rest {
    Durable,
    GivenUp,
    LeftToTheNext,
}

/// It may be at an RSA key, on a busy machine. A backend that does not answer for so long is of no use to
/// its guest either, and is ended.
const REGAIN_DEADLINE: Duration = Duration::from_secs(60);
/// The last state of a backend that was stopped, after everything that its guest was told is
/// durable.
const LAST_SAVE_DEADLINE: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Dials the same process again, and ends it if it does not answer. Only when the kernel says
    /// that it has ended, it has.
    pub(super) async fn regain(&mut self) -> After {
        // What was asked over the old connection is not answered any more.
        self.executing.clear();
        self.give_quotes_up();
        self.suspending = None;
        self.answers = JoinSet::new();
        self.early.clear();
        let folder = self.folder.clone();
        let number = self.process.number();
        let mut found = Box::pin(async move {
            match timeout(REGAIN_DEADLINE, introduced(&folder)).await {
                Ok(Ok(Some(found))) if found.process.number() == number => Some(found),
                // It does not listen any more: it is about to end.
                Ok(Ok(None)) => {
                    sleep(STOP_DEADLINE).await;
                    None
                }
                other => {
                    let found = other.map(|found| found.map(|_| "somebody else listens"));
                    tracing::error!(vrot = %folder.vrot(), ?found, "the backend does not answer");
                    None
                }
            }
        });
        loop {
            let overdue = self.stop.as_ref().map(|(_, deadline)| *deadline);
            tokio::select! {
                biased;
                status = self.process.ended() => return After::Ended { status },
                found = &mut found => match found {
                    Some(found) => return self.go_on_with(found).await,
                    None => break,
                },
                () = sleep_until(overdue.unwrap_or_else(far_future)), if overdue.is_some() => break,
                saved = attempt(&mut self.saving, &self.background) => {
                    // After the connection is regained, the backend sends what was not acknowledged.
                    let _ = self.saved(saved).await;
                }
                order = self.orders.recv(), if self.stop.is_none() => match order {
                    Some(Order::Stop(done, patience)) => {
                        self.stop = Some((done, Instant::now() + patience));
                    }
                    Some(Order::Kill) => break,
                    Some(Order::Settle(done)) => self.settle(done),
                    Some(Order::Release) | None => return After::Released,
                    // It cannot be done: dropping the sender tells the caller.
                    Some(
                        Order::Execute { .. }
                        | Order::Hold(_)
                        | Order::Quote(..)
                        | Order::Reset(_)
                        | Order::Serve(..)
                        | Order::Suspend(_)
                        | Order::TakeState(_),
                    ) => {}
                },
            }
        }
        let vrot = self.folder.vrot();
        tracing::error!(%vrot, process = number, "a backend that does not answer is killed");
        self.process.kill();
        let status = self.process.ended().await;
        After::Ended { status }
    }

    async fn go_on_with(&mut self, found: Found) -> After {
        tracing::warn!(vrot = %self.folder.vrot(), "the backend was dialled again, and goes on");
        self.observer
            .send_replace(Observed::of_status(&found.status));
        self.connection = found.connection;
        self.early = found.early;
        if self.stop.is_some() {
            // If this fails, that is noticed where it is waited for.
            let _ = self.connection.send(&ToBackend::Stop).await;
        }
        After::Regained
    }

    /// The backend has ended. What it pushed is made durable; then it is told, and only then the
    /// vRoT may be started again: a state that is being retried must not overwrite a newer one.
    pub(super) async fn conclude(mut self, reason: Option<String>, status: String) {
        let vrot = self.folder.vrot();
        match self.save_the_rest().await {
            Rest::LeftToTheNext => return self.leave_running().await,
            // It may have noted that it was degraded when it ended, and is not any more.
            Rest::Durable if self.handed_over => {
                if let Err(error) = self.folder.forget_loss() {
                    tracing::warn!(%vrot, %error, "it is taken for one that lost state");
                }
            }
            Rest::Durable | Rest::GivenUp => {}
        }
        if let Err(error) = self.folder.remove() {
            tracing::warn!(%vrot, %error, "a folder is left behind");
        }
        let ending = match &self.stop {
            Some(_) => Ending::Ordered,
            None => Ending::Unordered {
                reason: reason.unwrap_or(status),
            },
        };
        let ended = Ended {
            instance: self.instance,
            ending,
            state: self.state.take(),
        };
        // Closed first: an order that comes after this fails at once.
        self.orders.close();
        match (self.stop, self.role) {
            (Some((done, _)), _) => {
                let _ = done.send(ended);
            }
            (None, Role::Guest(role)) => {
                // The receiver is gone when the manager ends.
                let _ = role.ended.send((vrot, ended));
            }
            (None, Role::Manufacture) => {}
        }
    }

    /// Until everything that was pushed is durable, or is given up.
    async fn save_the_rest(&mut self) -> Rest {
        let deadline = self
            .stop
            .as_ref()
            .map(|_| Instant::now() + LAST_SAVE_DEADLINE);
        while self.saving.is_some() {
            let given_up = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                saved = attempt(&mut self.saving, &self.background) => {
                    let _ = self.saved(saved).await;
                }
                () = given_up => {
                    // Its guest was told nothing that is not durable, and waits since then: the
                    // next start is one after a loss of power.
                    let vrot = self.folder.vrot();
                    tracing::error!(%vrot, "the store does not take what the TPM left when it was switched off");
                    self.saving = None;
                    return Rest::GivenUp;
                }
                order = self.orders.recv(), if self.stop.is_none() => match order {
                    Some(Order::Release) | None => return Rest::LeftToTheNext,
                    Some(Order::Settle(done)) => self.settle(done),
                    // It has ended: dropping the sender tells the caller.
                    Some(
                        Order::Execute { .. }
                        | Order::Hold(_)
                        | Order::Kill
                        | Order::Quote(..)
                        | Order::Reset(_)
                        | Order::Serve(..)
                        | Order::Stop(..)
                        | Order::Suspend(_)
                        | Order::TakeState(_),
                    ) => {}
                },
            }
        }
        Rest::Durable
    }
}
