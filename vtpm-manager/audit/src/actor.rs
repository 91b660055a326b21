//! On whose order something is done.

use std::future::Future;

use serde::Serialize;

/// The user who gave an order, as the kernel tells it. Lines about what the manager does by itself
/// name nobody.
///
/// It goes with the task that carries the order out, so that no transition can forget to pass it
/// on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Actor(u32);

tokio::task_local! {
    static ACTOR: Actor;
}

impl Actor {
    /// The user with this id.
    pub fn of_uid(uid: u32) -> Self {
        Self(uid)
    }

    /// The user's id.
    pub fn uid(self) -> u32 {
        self.0
    }

    /// Whoever ordered what the present task does.
    pub fn current() -> Option<Self> {
        ACTOR.try_with(|actor| *actor).ok()
    }

    /// Does something on this user's order.
    pub async fn orders<F: Future>(self, what: F) -> F::Output {
        ACTOR.scope(self, what).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_its_giver_s_until_it_is_carried_out() {
        assert_eq!(Actor::current(), None);
        let actor = Actor::of_uid(1000);
        assert_eq!(actor.orders(async { Actor::current() }).await, Some(actor));
        assert_eq!(Actor::current(), None);
    }
}
