//! Asking single hosts with the address as sender, so that their caches follow: Linux applies a question to itself at
//! once, and the answer proves that it did.

use std::collections::VecDeque;

use arpwarden_common::wire::arp::Outgoing;

use super::{
    Managed, Slot,
    turn::{Flight, Turn},
    waiting::Waiting,
};
use crate::{
    action::{Answer, EventKind, Purpose},
    input::{MonoTime, Neighbour, RequestId},
    pace::Wish,
    params::{SEND_FAILURES, SEND_RETRY},
};

/// Questions to be asked and on their way, of all commands together.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Asks {
    /// Tells its frames from those of an earlier round of questions.
    tag: u64,
    waiting: VecDeque<Neighbour>,
    flying: usize,
    sent: u64,
    /// In a row.
    failures: u8,
    /// Those that failed are asked again then.
    pub(super) retry: Option<MonoTime>,
}

impl Managed {
    pub(crate) fn repair(&mut self, request: RequestId, neighbours: &[Neighbour], turn: &mut Turn<'_>) {
        if !self.state.may_answer() || self.work.slot != Slot::Installed {
            turn.answer(request, Answer::WrongState(self.state));
            return;
        }
        let tag = self.work.asks.as_ref().map_or_else(|| turn.tag(), |asks| asks.tag);
        let asks = self.work.asks.get_or_insert_with(|| Asks {
            tag,
            waiting: VecDeque::new(),
            flying: 0,
            sent: 0,
            failures: 0,
            retry: None,
        });
        for neighbour in neighbours {
            if !asks.waiting.contains(neighbour) {
                asks.waiting.push_back(*neighbour);
                turn.outbox.push(Wish::Ask(self.key));
            }
        }
        self.wait(Some(request), Waiting::Repair, turn);
        self.finish_asking(turn);
    }

    pub(super) fn launch_ask(&mut self, turn: &mut Turn<'_>) -> bool {
        if !self.state.may_answer() {
            return false;
        }
        let Some(asks) = self.work.asks.as_mut().filter(|asks| asks.retry.is_none()) else { return false };
        let Some(neighbour) = asks.waiting.pop_front() else { return false };
        asks.flying += 1;
        let (mac, tag) = (turn.interface.mac, asks.tag);
        let frame = Outgoing {
            destination: neighbour.mac,
            sender_ip: self.key.address,
            ..Outgoing::probe(mac, self.key.vlan, neighbour.address)
        };
        turn.send(self.key, Purpose::Ask, frame, tag, 0);
        true
    }

    pub(super) fn asked(&mut self, flight: &Flight, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Some(asks) = self.work.asks.as_mut().filter(|asks| asks.tag == flight.tag) else { return };
        asks.flying = asks.flying.saturating_sub(1);
        match result {
            Ok(()) => {
                asks.failures = 0;
                asks.sent += 1;
                self.finish_asking(turn);
            }
            Err(why) => {
                let Outgoing { destination: mac, target_ip: address, .. } = flight.frame;
                asks.waiting.push_back(Neighbour { mac, address });
                if asks.retry.is_some() {
                    return; // with the one before it; it is the attempts that count
                }
                asks.failures += 1;
                if asks.failures < SEND_FAILURES {
                    asks.retry = Some(turn.now.after(SEND_RETRY));
                    return;
                }
                let what = format!(
                    "repairing the caches of those who asked for {}: {SEND_FAILURES} questions in a row could not be \
                     sent: {why}; {} hosts were not asked",
                    self.key.address,
                    asks.waiting.len() + asks.flying
                );
                self.stop_asking(turn);
                self.fail(what.clone(), turn);
                self.answer_all(turn, |what| matches!(what, Waiting::Repair), &Answer::Failed(what));
            }
        }
    }

    /// Asks again those whose question could not be sent.
    pub(super) fn ask_again(&mut self, turn: &mut Turn<'_>) {
        if let Some(asks) = &mut self.work.asks {
            asks.retry = None;
            for _ in 0..asks.waiting.len() {
                turn.outbox.push(Wish::Ask(self.key));
            }
        }
    }

    fn finish_asking(&mut self, turn: &mut Turn<'_>) {
        if self.work.asks.as_ref().is_some_and(|asks| asks.waiting.is_empty() && asks.flying == 0) {
            self.stop_asking(turn);
            self.answer_all(turn, |what| matches!(what, Waiting::Repair), &Answer::Done);
        }
    }

    /// Tells of the questions that have left and drops the others.
    pub(super) fn stop_asking(&mut self, turn: &mut Turn<'_>) {
        if let Some(asks) = self.work.asks.take()
            && asks.sent > 0
        {
            turn.event(self.key, EventKind::Repaired { claimant: None, count: asks.sent });
        }
    }
}
