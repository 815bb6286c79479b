//! Work in a thread of its own, until somebody ends it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// Work under way. It is ended with the value, too.
#[derive(Debug)]
pub struct Background<T> {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

/// Tells the work whether it is to end.
#[derive(Debug)]
pub struct Ended(Arc<AtomicBool>);

impl Ended {
    /// It is.
    pub fn now(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<T: Send + 'static> Background<T> {
    /// Begins. The work looks at what it is given, and comes back soon after that says so.
    pub fn start(work: impl FnOnce(&Ended) -> T + Send + 'static) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Ended(Arc::clone(&end));
        Self { end, thread: Some(std::thread::spawn(move || work(&ended))) }
    }

    /// Ends it, and gives what came of it.
    ///
    /// # Panics
    /// If the work did.
    pub fn stop(mut self) -> T {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("not stopped yet");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever is interested in how it ended has called `stop`.
            drop(thread.join());
        }
    }
}
