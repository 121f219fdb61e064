//! Threads: one for each connection, kept for a while for the next one.
//!
//! A thread is reserved before a connection is accepted. If the system refuses one, the connection stays in
//! the kernel's queue, from which the other process of a handover may accept it.

use crate::lock::lock;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread waits for its next job before it ends.
const KEPT_FOR: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// A thread that waits for its job. It ends when this is dropped, so that a job that panics ends it, too.
pub(super) type Worker = Sender<Job>;

/// The threads without a job, and since when. The last one to become idle is the first to be reserved, so
/// that those in excess end.
#[derive(Clone)]
pub(super) struct Workers {
    idle: Arc<Mutex<Vec<(Instant, Worker)>>>,
    stack_size: usize,
}

impl Workers {
    pub(super) fn new(stack_size: usize) -> Workers {
        Workers { idle: Arc::default(), stack_size }
    }

    /// An idle thread, or a new one, to [run](Self::run) a job or to be [released](Self::release).
    ///
    /// # Errors
    ///
    /// The system refuses a new thread: `EAGAIN`, for a limit or for lack of memory; see pthread_create(3).
    pub(super) fn reserve(&self) -> io::Result<Worker> {
        if let Some((_, worker)) = self.idle().pop() {
            return Ok(worker);
        }
        let (worker, jobs) = mpsc::channel();
        let workers = self.clone();
        let thread = thread::Builder::new().name("connection".to_owned()).stack_size(self.stack_size);
        thread.spawn(move || workers.work(&jobs))?;
        Ok(worker)
    }

    pub(super) fn release(&self, worker: Worker) {
        self.idle().push((Instant::now(), worker));
    }

    pub(super) fn run(&self, worker: Worker, job: impl FnOnce() + Send + 'static) {
        let (workers, jobs) = (self.clone(), worker.clone());
        // It cannot fail: the thread is there for as long as its worker.
        let _ = jobs.send(Box::new(move || {
            job();
            workers.release(worker);
        }));
    }

    fn work(&self, jobs: &Receiver<Job>) {
        loop {
            match jobs.recv_timeout(KEPT_FOR) {
                Ok(job) => job(),
                // This one is among them, unless it has just been reserved: then a job will come.
                Err(RecvTimeoutError::Timeout) => self.idle().retain(|(since, _)| since.elapsed() < KEPT_FOR),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, Worker)>> {
        lock(&self.idle)
    }
}
