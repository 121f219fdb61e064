//! Threads: one for each connection, kept for a while for the next one.
//!
//! A thread is reserved before a connection is accepted. If the system refuses one, the connection stays in
//! the kernel's queue, from which the other process of a handover may accept it.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// How long a thread waits for its next job before it ends.
const KEPT_FOR: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The threads without a job. The last one to become idle is the first to be reserved, so that those in
/// excess end.
#[derive(Clone, Default)]
pub(crate) struct Workers {
    idle: Arc<Mutex<Vec<Worker>>>,
}

/// A thread that waits for its job.
pub(crate) struct Worker {
    thread: ThreadId,
    jobs: Sender<Job>,
}

impl Workers {
    /// An idle thread, or a new one, to be given a job or to be [released](Self::release).
    ///
    /// # Errors
    ///
    /// The system refuses a new thread: `EAGAIN`, for a limit or for lack of memory; see pthread_create(3).
    pub(crate) fn reserve(&self) -> io::Result<Worker> {
        let kept = self.idle().pop();
        kept.map_or_else(|| self.start(), Ok)
    }

    pub(crate) fn release(&self, worker: Worker) {
        self.idle().push(worker);
    }

    fn start(&self) -> io::Result<Worker> {
        let (jobs, received) = mpsc::channel();
        let (workers, again) = (self.clone(), jobs.clone());
        let work = move || workers.work(&received, &again);
        let thread = thread::Builder::new().name("connection".to_owned()).spawn(work)?.thread().id();
        Ok(Worker { thread, jobs })
    }

    /// Runs jobs until none comes for too long. A job that panics ends the thread, and nothing else.
    fn work(&self, received: &Receiver<Job>, again: &Sender<Job>) {
        let thread = thread::current().id();
        loop {
            if let Ok(job) = received.recv_timeout(KEPT_FOR) {
                job();
                self.release(Worker { thread, jobs: again.clone() });
                continue;
            }
            let mut idle = self.idle();
            if let Some(index) = idle.iter().position(|worker| worker.thread == thread) {
                idle.remove(index);
                return;
            }
            // It has just been reserved: a job will come.
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Runs the job on the thread.
    pub(crate) fn run(self, job: impl FnOnce() + Send + 'static) {
        // It cannot fail: a thread ends only if it finds itself among the idle ones, and this is not.
        let _ = self.jobs.send(Box::new(job));
    }
}
