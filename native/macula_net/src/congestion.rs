//! Congestion control that starts afresh when a link takes another path.
//!
//! It is CUBIC, or BBR where that is asked for, and bounded when several streams send: what would only
//! wait on the path waits at the sender then, where each stream has a queue of its own
//! (`macula_core::path::bound`).
//!
//! What was learned of the capacity of one path says nothing of another, and packets that were lost
//! on the former one are no sign of congestion on this one, nor do those that are still unacknowledged
//! take up room here.
//!
//! And it lets acknowledgements pass. As long as there is data to send and no room for it, quinn sends
//! no acknowledgements either (RFC 9002, 7, would not have them wait), so that two ends that send to
//! each other would both stand still with full windows until the next probe timeout.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use macula_core::path::bound::Bound;
use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// How long after its last packet a sender without room may send one more, which takes the
/// acknowledgements along: as long as a receiver that was told nothing else may hold them back (RFC
/// 9000, 18.2). As often as ours send them would be much of what a slow line takes.
const TRICKLE: Duration = Duration::from_millis(25);

/// Where several streams send, QUIC is handed twice what the path delivers in so long, at most, or twice what may be under
/// way. More is what a process waits for that shares a lane with a busy one. Less than a window on a LAN, as with a fourth
/// of this, cost 32 senders a tenth of their rate.
const AHEAD: Duration = Duration::from_millis(100);

/// What decides how much may be under way on a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC (RFC 9438): less after each loss, as TCP does. Fair to others on the same line.
    #[default]
    Cubic,
    /// BBR, version 1 (draft-cardwell-iccrg-bbr-congestion-control): what the path was seen to deliver,
    /// whatever gets lost. For lines that lose packets without being full; where others fill the line
    /// as well it takes more than its share. quinn calls its own experimental.
    Bbr,
}

impl Congestion {
    fn factory(self) -> Factory {
        match self {
            Congestion::Cubic => Arc::new(CubicConfig::default()),
            Congestion::Bbr => Arc::new(BbrConfig::default()),
        }
    }
}

type Factory = Arc<dyn ControllerFactory + Send + Sync>;

/// Counts the changes of path of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epoch(Arc<AtomicU64>);

impl Epoch {
    /// The epoch of a connection that [`PerPathConfig`] is the congestion control of.
    pub(crate) fn of(connection: &quinn::Connection) -> Epoch {
        shared_with(connection, |controller| controller.epoch.clone())
    }

    /// The connection's packets take another path from now on.
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Whether several streams of one connection have something to send: then none of them is to fill the
/// path. One alone may; a bound would only have it wait for acknowledgements more often.
#[derive(Clone, Debug, Default)]
pub(crate) struct Company(Arc<AtomicBool>);

impl Company {
    /// That of the streams of a connection.
    pub(crate) fn of(connection: &quinn::Connection) -> Company {
        shared_with(connection, |controller| controller.company.clone())
    }

    /// Says that there are several, or one.
    pub(crate) fn set(&self, several: bool) {
        self.0.store(several, Relaxed);
    }
}

/// How many bytes of a connection are worth having under way, or soon: as its congestion control has it, and the path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window(Arc<AtomicU64>);

impl Window {
    /// That of a connection.
    pub(crate) fn of(connection: &quinn::Connection) -> Window {
        shared_with(connection, |controller| controller.shared.clone())
    }

    /// In bytes, as of the latest acknowledgement; 0 before the first.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What the congestion control of a connection shares. Another one than ours never hears of anything.
fn shared_with<T: Default>(connection: &quinn::Connection, pick: impl Fn(&PerPath) -> T) -> T {
    let controller = connection.congestion_state().into_any();
    controller.downcast_ref().map(pick).unwrap_or_default()
}

/// Makes the congestion control of links, anew for each path.
pub(crate) struct PerPathConfig(Factory);

impl PerPathConfig {
    pub(crate) fn new(congestion: Congestion) -> PerPathConfig {
        PerPathConfig(congestion.factory())
    }
}

impl ControllerFactory for PerPathConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(PerPath {
            inner: self.0.clone().build(now, mtu),
            config: self.0.clone(),
            epoch: Epoch::default(),
            company: Company::default(),
            shared: Window::default(),
            bound: Bound::default(),
            seen: 0,
            began: now,
            mtu,
            in_flight: 0,
            left_behind: 0,
            last_sent: now,
        })
    }
}

struct PerPath {
    inner: Box<dyn Controller>,
    config: Factory,
    epoch: Epoch,
    company: Company,
    shared: Window,
    bound: Bound,
    /// The epoch that `inner` and `bound` are of, and when it began.
    seen: u64,
    began: Instant,
    mtu: u16,
    /// Bytes not acknowledged: as of the latest acknowledgement, and what was sent since.
    in_flight: u64,
    /// Those of them that took the former path.
    left_behind: u64,
    last_sent: Instant,
}

impl PerPath {
    /// Bytes that may be under way at once on this path.
    fn room(&self) -> u64 {
        if self.epoch.0.load(Relaxed) == self.seen {
            // Asked for each packet: the bound is worked out only where it counts.
            let bound = self.company.0.load(Relaxed).then(|| self.bound.bytes()).flatten();
            self.inner.window().min(bound.unwrap_or(u64::MAX)) + self.left_behind
        } else {
            self.inner.initial_window() + self.in_flight
        }
    }

    /// Bytes that may be under way, and not more than go out soon where several streams send.
    fn worth(&self) -> u64 {
        let soon = self.bound.delivered_in(AHEAD).unwrap_or(u64::MAX);
        self.inner.window().min(soon).max(self.room())
    }

    fn keep_up(&mut self, now: Instant) {
        let epoch = self.epoch.0.load(Relaxed);
        if epoch != self.seen {
            self.seen = epoch;
            self.began = now;
            self.inner = self.config.clone().build(now, self.mtu);
            self.bound = Bound::default();
            self.left_behind = self.in_flight;
        }
    }
}

impl Controller for PerPath {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.keep_up(now);
        self.in_flight += bytes;
        self.last_sent = now;
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
            let since = |then: Instant| then.saturating_duration_since(self.began);
            self.bound.acknowledged(since(now), since(sent), bytes, app_limited);
            self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        } else {
            self.left_behind = self.left_behind.saturating_sub(bytes);
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
        self.in_flight = in_flight;
        self.left_behind = self.left_behind.min(in_flight);
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
        self.shared.0.store(self.worth(), Relaxed);
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
        } else {
            self.left_behind = self.left_behind.saturating_sub(lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let (room, one_more) = (self.room(), self.in_flight + u64::from(self.mtu) + 1);
        // quinn does not tell the time here; it is asked for only when there is no room.
        if one_more <= room || self.last_sent.elapsed() < TRICKLE { room } else { one_more }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(PerPath {
            inner: self.inner.clone_box(),
            config: self.config.clone(),
            epoch: self.epoch.clone(),
            company: self.company.clone(),
            shared: self.shared.clone(),
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

    fn epoch(controller: &dyn Controller) -> Epoch {
        let Ok(control) = controller.clone_box().into_any().downcast::<PerPath>() else {
            panic!("it is what the factory made");
        };
        control.epoch
    }

    #[test]
    fn a_new_way_starts_afresh_and_forgets_the_losses_of_the_former_one() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let factory = Arc::new(PerPathConfig::new(Congestion::Cubic));
        let mut controller = factory.build(began, 1452);
        let first = controller.window();
        controller.on_congestion_event(at(10), at(5), false, 1452);
        assert!(controller.window() < first);
        epoch(&*controller).advance();
        controller.on_congestion_event(at(20), at(15), true, 1452);
        assert_eq!(controller.window(), first);
        controller.on_congestion_event(at(40), at(30), false, 1452);
        assert!(controller.window() < first);
    }

    #[test]
    fn bbr_bears_single_losses_where_cubic_takes_them_for_a_full_line() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let after_a_loss = |congestion| {
            let mut controller = Arc::new(PerPathConfig::new(congestion)).build(began, 1452);
            let first = controller.window();
            controller.on_congestion_event(at(10), at(5), false, 1452);
            controller.window() as f64 / first as f64
        };
        assert!(after_a_loss(Congestion::Cubic) < 1.0);
        assert_eq!(after_a_loss(Congestion::Bbr), 1.0);
    }

    #[test]
    fn what_the_former_way_did_not_acknowledge_takes_no_room_on_a_new_one() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let factory = Arc::new(PerPathConfig::new(Congestion::Cubic));
        let mut controller = factory.build(began, 1452);
        let first = controller.window();
        (1..=8).for_each(|n| controller.on_sent(at(n), 1452, n));
        controller.on_end_acks(at(9), 7 * 1452, false, Some(1));
        controller.on_sent(at(9), 1452, 9);
        assert_eq!(controller.window(), first);
        epoch(&*controller).advance();
        assert_eq!(controller.window(), first + 8 * 1452);
        controller.on_sent(at(10), 1452, 10);
        assert_eq!(controller.window(), first + 8 * 1452);
        controller.on_congestion_event(at(11), at(8), true, 3 * 1452);
        assert_eq!(controller.window(), first + 5 * 1452);
        controller.on_end_acks(at(11), 1452, true, Some(9));
        assert_eq!(controller.window(), first + 1452);
    }

    #[test]
    fn who_has_no_room_may_send_one_packet_now_and_then() {
        let long_ago = Instant::now() - 2 * TRICKLE;
        let factory = Arc::new(PerPathConfig::new(Congestion::Cubic));
        let mut controller = factory.build(long_ago, 1452);
        let first = controller.window();
        controller.on_sent(long_ago, first, 9);
        assert!((first + 1452..first + 2 * 1452).contains(&controller.window()));
        controller.on_sent(Instant::now(), 1452, 10);
        assert_eq!(controller.window(), first);
    }
}
