//! Congestion control that starts afresh when a link takes another path.
//!
//! What was learned of the capacity of one path says nothing of another, and packets that were lost
//! on the former one are no sign of congestion on this one.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Counts the changes of path of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epoch(Arc<AtomicU64>);

impl Epoch {
    /// The epoch of a connection that [`PathCubicConfig`] is the congestion control of.
    pub(crate) fn of(connection: &quinn::Connection) -> Epoch {
        let controller = connection.congestion_state().into_any();
        match controller.downcast::<PathCubic>() {
            Ok(controller) => controller.epoch.clone(),
            // Another controller never hears of a change.
            Err(_) => Epoch::default(),
        }
    }

    /// The connection's packets take another path from now on.
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Makes the congestion control of links: CUBIC (RFC 9438), anew for each path.
#[derive(Debug, Default)]
pub(crate) struct PathCubicConfig(Arc<CubicConfig>);

impl ControllerFactory for PathCubicConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(PathCubic {
            inner: self.0.clone().build(now, mtu),
            config: self.0.clone(),
            epoch: Epoch::default(),
            seen: 0,
            began: now,
            mtu,
        })
    }
}

struct PathCubic {
    inner: Box<dyn Controller>,
    config: Arc<CubicConfig>,
    epoch: Epoch,
    /// The epoch that `inner` is of, and when it began.
    seen: u64,
    began: Instant,
    mtu: u16,
}

impl PathCubic {
    fn keep_up(&mut self, now: Instant) {
        let epoch = self.epoch.0.load(Relaxed);
        if epoch != self.seen {
            self.seen = epoch;
            self.began = now;
            self.inner = self.config.clone().build(now, self.mtu);
        }
    }
}

impl Controller for PathCubic {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.keep_up(now);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.keep_up(now);
        if sent >= self.began {
            self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.keep_up(now);
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.keep_up(now);
        if sent >= self.began {
            self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(PathCubic {
            inner: self.inner.clone_box(),
            config: self.config.clone(),
            epoch: self.epoch.clone(),
            ..*self
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_new_way_starts_afresh_and_forgets_the_losses_of_the_former_one() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let factory = Arc::new(PathCubicConfig::default());
        let mut controller = factory.build(began, 1452);
        let first = controller.window();
        controller.on_congestion_event(at(10), at(5), false, 1452);
        assert!(controller.window() < first);
        let Ok(control) = controller.clone_box().into_any().downcast::<PathCubic>() else {
            panic!("it is what the factory made");
        };
        control.epoch.advance();
        controller.on_congestion_event(at(20), at(15), true, 1452);
        assert_eq!(controller.window(), first);
        controller.on_congestion_event(at(40), at(30), false, 1452);
        assert!(controller.window() < first);
    }
}
