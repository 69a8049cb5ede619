//! Clients that move: quinn's server follows them and tells nobody.
//!
//! A client's NAT may give it another address at any time, and a client that idles sends nothing then but PINGs, of which
//! no stream and no swarm hears. A coordinator must: it is what its clients know their address from.

use std::{sync::Arc, time::Duration};

use super::{binding::Env, time::Delay};

/// How often the connections are looked at, and so how late a move is told at most. A look takes a lock of each.
const LOOK: Duration = Duration::from_secs(1);

/// Looks at the connections that peers made, as long as there are any, and wakes those whose peer has moved.
pub(super) fn follow(env: &Env) {
    if !env.connections.begins_to_follow() {
        return;
    }
    let (runtime, connections) = (env.runtime.clone(), Arc::downgrade(&env.connections));
    env.runtime.spawn(Box::pin(async move {
        loop {
            Delay::new(&*runtime, LOOK).await;
            if !connections.upgrade().is_some_and(|connections| connections.follow_clients()) {
                return;
            }
        }
    }));
}
