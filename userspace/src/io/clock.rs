//! The only reader of the clock.
//!
//! Everything is CLOCK_BOOTTIME, which goes on while the machine sleeps and is what the kernel side stamps its
//! events with; the calendar is read for what is shown to people only.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use arpwarden_engine::MonoTime;
use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{self, clock_gettime},
};
use tokio::io::unix::AsyncFd;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// The time of CLOCK_BOOTTIME.
pub fn now() -> MonoTime {
    MonoTime(read(time::ClockId::CLOCK_BOOTTIME))
}

/// How long the machine has slept since it booted, in nanoseconds: CLOCK_BOOTTIME − CLOCK_MONOTONIC. Two reads are
/// microseconds apart, and so are two results between which it has not slept.
pub fn slept_ns() -> u64 {
    // Monotonic first: what passes between the two reads then counts as slept, which never gives less than nothing.
    let awake = read(time::ClockId::CLOCK_MONOTONIC);
    read(time::ClockId::CLOCK_BOOTTIME).saturating_sub(awake)
}

/// The calendar's time: RFC 3339, UTC, nanoseconds, for example `2026-11-22T22:41:07.000000001Z`.
pub fn wall_time_rfc3339_ns() -> String {
    rfc3339(read(time::ClockId::CLOCK_REALTIME))
}

/// Nanoseconds of a clock that every Linux has and that is never before 1970.
fn read(clock: time::ClockId) -> u64 {
    match clock_gettime(clock) {
        Ok(at) => {
            let seconds = u64::try_from(at.tv_sec()).unwrap_or(0);
            seconds.saturating_mul(NS_PER_SECOND).saturating_add(u64::try_from(at.tv_nsec()).unwrap_or(0))
        }
        // EINVAL and EFAULT are the only errors (clock_gettime(2)); neither is possible with these clocks
        // and a buffer on the stack. Time that stands still is the value that makes nothing happen.
        Err(_) => 0,
    }
}

/// A time since 1970 as a date: RFC 3339, UTC, whole seconds.
pub(super) fn rfc3339_seconds(since_1970: Duration) -> String {
    let mut date = rfc3339(since_1970.as_secs().saturating_mul(NS_PER_SECOND));
    date.truncate("1970-01-01T00:00:00".len());
    date + "Z"
}

/// Writes nanoseconds since 1970 as a date. The calendar is the proleptic Gregorian one; a year is counted
/// from 1 March, so that the leap day is its last day and month lengths follow one linear formula.
fn rfc3339(ns: u64) -> String {
    const DAYS_BEFORE_1970: u64 = 719_468; // 0000-03-01 to 1970-01-01
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let (seconds, fraction) = (ns / NS_PER_SECOND, ns % NS_PER_SECOND);
    let (days, of_day) = (seconds / 86_400 + DAYS_BEFORE_1970, seconds % 86_400);
    let (cycle, of_cycle) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year_of_cycle = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let day_of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// One alarm on CLOCK_BOOTTIME. It goes off at once when a sleep of the machine has carried it past its time.
#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<Descriptor>,
    /// What it is set to, unless it has gone off.
    at: Option<MonoTime>,
}

/// [`TimerFd`] has no [`AsRawFd`], which [`AsyncFd`] asks for.
#[derive(Debug)]
struct Descriptor(TimerFd);

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// An alarm that is not set. Needs a tokio runtime with its I/O driver.
    ///
    /// # Errors
    /// No descriptor is left, or no runtime is there.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        Ok(Self { fd: super::watch(Descriptor(timer))?, at: None })
    }

    /// Sets the alarm to `at`, or to never. A time in the past goes off at once. An alarm that went off and was
    /// not waited for is forgotten.
    ///
    /// # Errors
    /// None that a valid descriptor can cause (timerfd_settime(2)).
    pub fn set(&mut self, at: Option<MonoTime>) -> io::Result<()> {
        // The loop sets it each time round, mostly to what it is set to: 4 % of the time of a claim of many addresses.
        if at.is_some() && self.at == at {
            return Ok(());
        }
        self.at = at;
        let timer = &self.fd.get_ref().0;
        match at {
            None => timer.unset()?,
            Some(MonoTime(ns)) => {
                // All zero means never, so the first nanosecond stands for it.
                let ns = ns.max(1);
                let seconds = i64::try_from(ns / NS_PER_SECOND).unwrap_or(i64::MAX);
                let rest = i64::try_from(ns % NS_PER_SECOND).unwrap_or(0);
                let at = Expiration::OneShot(TimeSpec::new(seconds, rest));
                timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
        }
        Ok(())
    }

    /// Waits until the alarm goes off. Dropping the future loses nothing.
    pub async fn expired(&mut self) {
        loop {
            let Ok(mut ready) = self.fd.readable().await else {
                // The runtime is shutting down: nobody is left to be woken.
                return std::future::pending().await;
            };
            let mut count = [0; 8];
            let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref().0.as_fd(), &mut count)?));
            if let Ok(Ok(_)) = read {
                self.at = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days_are_written_as_the_calendar_has_them() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000Z"),
            (1_795_387_267, "2026-11-22T22:41:07.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(seconds * NS_PER_SECOND), date);
        }
        assert_eq!(rfc3339(1_000_000_042), "1970-01-01T00:00:01.000000042Z");
    }

    #[test]
    fn a_machine_that_stays_awake_has_always_slept_as_long() {
        // This thread may wait for its turn between the two reads, so the least of several counts.
        let slept = || (0..1_000).map(|_| slept_ns()).min().unwrap();
        let before = slept();
        std::thread::sleep(Duration::from_millis(20));
        assert!(slept().abs_diff(before) < 1_000_000);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_alarm_goes_off_at_its_time_and_once() {
        let mut timer = Timer::new().unwrap();
        let due = now().after(Duration::from_millis(30));
        timer.set(Some(due)).unwrap();
        timer.expired().await;
        assert!(now() >= due);

        timer.set(Some(MonoTime(0))).unwrap();
        timer.expired().await;

        // Gone off, not waited for, set anew: only the new time counts.
        timer.set(Some(now())).unwrap();
        std::thread::yield_now();
        let due = now().after(Duration::from_millis(20));
        timer.set(Some(due)).unwrap();
        timer.expired().await;
        assert!(now() >= due);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_alarm_that_was_unset_stays_silent() {
        let mut silent = Timer::new().unwrap();
        let mut other = Timer::new().unwrap();
        silent.set(Some(now().after(Duration::from_millis(5)))).unwrap();
        silent.set(None).unwrap();
        other.set(Some(now().after(Duration::from_millis(30)))).unwrap();
        tokio::select! {
            () = silent.expired() => panic!("unset, and went off"),
            () = other.expired() => {}
        }
    }
}
