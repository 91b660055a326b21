//! TPM commands of the manager to a live backend, between those of its guest.

use std::io;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use vrot_manufacture::CommandChannel;

use super::handle::Backend;
use super::order::Order;

/// An order that waits for exclusive use of a backend. Over when dropped.
#[derive(Debug)]
pub struct OrderWaits<'a>(&'a watch::Sender<usize>);

/// A way to send TPM commands to a live backend, between those of its guest. Blocks.
#[derive(Debug)]
pub struct ExecuteChannel {
    orders: mpsc::Sender<Order>,
    runtime: tokio::runtime::Handle,
    /// How many orders wait for whoever uses this.
    waiting: watch::Receiver<usize>,
    gave_way: bool,
}

/// The longest TPM command, on the busiest machine.
const EXECUTE_DEADLINE: Duration = Duration::from_secs(60);
/// The same while an order waits for whoever sent the command.
const GIVING_WAY: Duration = Duration::from_secs(5);

impl Backend {
    /// A way to send TPM commands to the backend. Must be called in a task, and used in a thread
    /// that may block.
    pub fn channel(&self) -> ExecuteChannel {
        ExecuteChannel {
            orders: self.orders.clone(),
            runtime: tokio::runtime::Handle::current(),
            waiting: self.waiting.subscribe(),
            gave_way: false,
        }
    }

    /// Makes commands that wait for the backend give up if it does not answer.
    pub fn order_waits(&self) -> OrderWaits<'_> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        OrderWaits(&self.waiting)
    }
}

impl Drop for OrderWaits<'_> {
    fn drop(&mut self) {
        self.0
            .send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

impl CommandChannel for ExecuteChannel {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let gave_way = || {
            let what = "the backend does not answer, and an order waits for it";
            io::Error::new(io::ErrorKind::TimedOut, what)
        };
        if self.gave_way {
            return Err(gave_way());
        }
        let waiting = &mut self.waiting;
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the backend has ended");
        let (response, responded) = oneshot::channel();
        let order = Order::Execute {
            command: command.to_vec(),
            response,
        };
        self.runtime.block_on(async {
            let answer = async {
                self.orders.send(order).await.map_err(|_| gone())?;
                responded.await.map_err(|_| gone())
            };
            let in_the_way = async {
                while waiting.wait_for(|waiting| *waiting > 0).await.is_ok() {
                    sleep(GIVING_WAY).await;
                    if *waiting.borrow() > 0 {
                        return;
                    }
                }
                // The backend's handle is gone, and with it whoever could wait.
                std::future::pending().await
            };
            tokio::select! {
                answer = timeout(EXECUTE_DEADLINE, answer) => if let Ok(answer) = answer {
                    return answer;
                },
                () = in_the_way => {
                    self.gave_way = true;
                    return Err(gave_way());
                }
            }
            // Others wait for their turn, and whoever would end this backend waits as well.
            let _ = self.orders.send(Order::Kill).await;
            Err(io::ErrorKind::TimedOut.into())
        })
    }

    fn hold(&mut self, held: bool) -> io::Result<()> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the backend has ended");
        self.orders.blocking_send(Order::Hold(held)).map_err(gone)
    }
}
